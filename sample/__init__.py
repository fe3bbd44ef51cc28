"""The embedded default corpus and its one split: pretraining and fine-tuning both read it here, so that what is held
out is held out of everything."""

from .reviews import SampleCorpus, SentimentExample, load_sample

__all__ = ["SampleCorpus", "SentimentExample", "load_sample"]
