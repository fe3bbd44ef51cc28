"""Protects the claim that the Encoder family computes what stock ModernBERT with full attention computes."""

import pytest
import torch
from stock_modernbert import SHAPE, assert_same_function, our_model


def inputs_for(task: str) -> dict[str, torch.Tensor]:
    """A padded batch, and the labels that the task's loss asks for.

    What is padding the mask says; the pad id itself does not occur, since stock never trains its embedding
    (`padding_idx`) and we do where a loss reads it.
    """
    shape = (2, 3, 9) if task == "ForMultipleChoice" else (2, 9)
    ids, attention_mask = torch.randint(1, SHAPE["vocab_size"], shape), torch.ones(shape, dtype=torch.long)
    attention_mask[1, ..., 6:] = 0
    labels = {
        "Model": {},
        "ForMaskedLM": {"labels": torch.where(torch.rand(shape) < 0.5, ids, -100)},
        "ForTokenClassification": {"labels": ids % 2},
        "ForSequenceClassification": {"labels": torch.tensor([0, 1])},
        "ForQuestionAnswering": {"start_positions": torch.tensor([1, 2]), "end_positions": torch.tensor([3, 2])},
        "ForMultipleChoice": {"labels": torch.tensor([2, 0])},
    }[task]
    return {"input_ids": ids, "attention_mask": attention_mask, **labels}


@pytest.mark.parametrize(
    ("task", "pooling"),
    [
        ("Model", "mean"),
        ("ForMaskedLM", "mean"),
        ("ForTokenClassification", "mean"),
        ("ForQuestionAnswering", "mean"),
        ("ForSequenceClassification", "mean"),
        ("ForSequenceClassification", "cls"),
        ("ForMultipleChoice", "mean"),
        ("ForMultipleChoice", "cls"),
    ],
)
def test_encoder_is_stock_modernbert_with_full_attention(task: str, pooling: str):
    model = our_model("Encoder", task, classifier_pooling=pooling)
    assert_same_function(model, inputs_for(task))
