"""The Python that cards may contain, because `verify` runs it and a card may come from anywhere.

A new line in the code of a card must be added here; `write_card` refuses others.
"""

from __future__ import annotations

import re

_TEXT = r"""(?:'(?:[^'\\\r\n]|\\[^\r\n])*'|"(?:[^"\\\r\n]|\\[^\r\n])*")"""  # one string literal
_PARTS = {
    "INPUT": rf"(?:{_TEXT}|\{{'text': {_TEXT}, 'text_pair': {_TEXT}\}})",
    "TEXTS": rf"\[{_TEXT}(?:, {_TEXT})*\]",
    "TEXT": _TEXT,
    "TASK": "[a-z-]+",
    "CLASS": r"AutoModel\w*",
    "TRUST": r"(?:, trust_remote_code=True)?",
}
_LINES = """\
from transformers import pipeline
from transformers import CLASS, AutoTokenizer

model_id = "."  # this directory
pipe = pipeline("TASK", model=model_idTRUST)
tokenizer = AutoTokenizer.from_pretrained(model_idTRUST)
model = CLASS.from_pretrained(model_idTRUST)
for text in [
    TEXT,
]:
    for guess in pipe(text, top_k=3):
        print(text, "->", guess["token_str"], round(guess["score"], 3))
    written = pipe(text, max_new_tokens=20, do_sample=False)
    print(text, "->", written[0]["generated_text"])
    written = model.generate(**tokenizer(text, return_tensors="pt"), max_new_tokens=20, do_sample=False)
    print(text, "->", tokenizer.decode(written[0]))
print(pipe(INPUT))
print(pipe(INPUT, top_k=None))  # the probability of each label
print(pipe(INPUT, function_to_apply='none'))
print(pipe(TEXT, aggregation_strategy='simple'))
context, choices = TEXT, TEXTS
encoded = tokenizer([context] * len(choices), choices, truncation=True, padding=True, return_tensors="pt")
scores = model(**{name: values[None] for name, values in encoded.items()}).logits[0]
print(choices[scores.argmax()])
encoded = tokenizer(TEXT, TEXT, truncation=True, return_tensors="pt")
answer = model(**encoded)
print(tokenizer.decode(encoded["input_ids"][0][answer.start_logits.argmax() : answer.end_logits.argmax() + 1]))
encoded = tokenizer(TEXT, truncation=True, return_tensors="pt")
print(tokenizer.decode(model.generate(**encoded, max_length=128)[0], skip_special_tokens=True))"""
_ALLOWED = [
    re.compile(re.sub("|".join(_PARTS), lambda part: _PARTS[part[0]], re.escape(line))) for line in _LINES.split("\n")
]


def refused_code(code: str) -> str | None:
    """Return the first line of a card's Python that our commands do not write, or None."""
    for line in code.rstrip("\n").split("\n"):
        if not any(allowed.fullmatch(line) for allowed in _ALLOWED):
            return f"{line[:60]!r} is not code that our commands write"
    return None
