"""Protects LoRA by peft: adapters on our projections are trained alone, saved and merged."""

import copy

import pytest
import torch
from families import (
    GENERATORS,
    LANGUAGE_MODELS,
    assert_close,
    every_family,
    language_model,
    random_ids,
    tiny_model,
    training_batch,
)
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel, Trainer, TrainingArguments

TASK_TYPES = {"Bert": None, "Encoder": None, "Decoder": "CAUSAL_LM", "Seq2Seq": "SEQ_2_SEQ_LM"}


def lora(model: PreTrainedModel, task_type: str | None = None, **settings) -> PeftModel:
    config = LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type=task_type, **settings)
    return get_peft_model(model, config)


def train(model: PeftModel, inputs: dict[str, torch.Tensor], steps: int = 5) -> list[float]:
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@every_family
@pytest.mark.parametrize("typed", [False, True])
def test_only_adapters_are_trained_and_they_merge(family: str, typed: bool):
    """With peft's class for the task and without; also in cross-attention."""
    original = language_model(family)
    model = lora(copy.deepcopy(original), TASK_TYPES[family] if typed else None).train()
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained and all("lora_" in name for name in trained)
    blocks = 6 if family == "Seq2Seq" else 2  # two layers; in a Seq2Seq also of the decoder and of cross-attention
    assert len(trained) == blocks * 2 * 2

    inputs = training_batch(family)
    assert_close(model(**inputs).loss, original(**inputs).loss)  # a new adapter changes nothing
    losses = train(model, inputs)
    assert losses[-1] < losses[0] - 1e-2
    for name, parameter in model.get_base_model().named_parameters():
        if "lora_" not in name:
            assert torch.equal(parameter, original.get_parameter(name.replace("base_layer.", ""))), name

    model.eval()
    with torch.no_grad():
        adapted = model(**inputs).logits
        merged = model.merge_and_unload()
        assert type(merged) is type(original)
        assert [name for name, _ in merged.named_parameters()] == [name for name, _ in original.named_parameters()]
        assert_close(merged(**inputs).logits, adapted)
        assert not torch.allclose(original(**inputs).logits, adapted, atol=1e-3)


@every_family
def test_an_adapter_is_saved_and_opened(family: str, tmp_path):
    """From a directory of its own, without the weights of the base."""
    base = language_model(family)
    base.save_pretrained(tmp_path / "base")
    model = lora(type(base).from_pretrained(tmp_path / "base"), TASK_TYPES[family])
    inputs = training_batch(family)
    train(model.train(), inputs)
    model.eval()
    model.save_pretrained(tmp_path / "adapter")
    reopened = type(base).from_pretrained(tmp_path / "base")
    reopened = PeftModel.from_pretrained(reopened, tmp_path / "adapter").eval()
    through_transformers = type(base).from_pretrained(tmp_path / "adapter")  # finds the base by the adapter's config
    with torch.no_grad():
        expected = model(**inputs).logits
        assert_close(reopened(**inputs).logits, expected)
        assert_close(through_transformers(**inputs).logits, expected)
    size = (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size
    assert size < 0.5 * (tmp_path / "base" / "model.safetensors").stat().st_size


@pytest.mark.parametrize("family", GENERATORS)
def test_an_adapted_model_generates(family: str):
    """As the merged model does."""
    model = lora(language_model(family, tie_word_embeddings=False), TASK_TYPES[family], init_lora_weights=False).eval()
    prompt = {"input_ids": random_ids(2, 5), "attention_mask": torch.ones(2, 5, dtype=torch.long)}
    generated = model.generate(**prompt, max_new_tokens=6, do_sample=False)
    assert torch.equal(model.merge_and_unload().generate(**prompt, max_new_tokens=6, do_sample=False), generated)


@pytest.mark.parametrize("family", [family for family in LANGUAGE_MODELS if family != "Seq2Seq"])
def test_the_classifier_is_trained_with_the_adapters(family: str):
    """`task_type="SEQ_CLS"` finds the layer by its name."""
    model = lora(tiny_model(family, "ForSequenceClassification"), "SEQ_CLS")
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert any("classifier" in name for name in trained)
    assert all("lora_" in name or "classifier" in name for name in trained)
    losses = train(model.train(), training_batch(family, "ForSequenceClassification"))
    assert losses[-1] < losses[0]


@every_family
def test_adapters_train_under_checkpointing_in_the_trainer(family: str, tmp_path):
    """With frozen embeddings: `enable_input_require_grads` must find them."""
    model = lora(language_model(family), TASK_TYPES[family])
    inputs = training_batch(family)
    rows = [{name: value[index] for name, value in inputs.items()} for index in range(2)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=6,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": True},
        logging_steps=1,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
    )
    trainer = Trainer(model, arguments, train_dataset=rows)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] - 1e-2
    touched = {name for name, parameter in model.named_parameters() if "lora_B" in name and parameter.abs().max() > 0}
    assert len(touched) == (12 if family == "Seq2Seq" else 4)
