"""The road from q, k, v to BERT: the text of docs/tour.md with the numbers, pictures and source lines of this code."""
