"""Decide which Python in a model card is harmless, because `verify` runs it and a card may come from anywhere."""

from __future__ import annotations

import ast

_NODES = (ast.Module, ast.ImportFrom, ast.alias, ast.Assign, ast.Expr, ast.For, ast.Call, ast.keyword, ast.Name)
_NODES += (ast.Constant, ast.Attribute, ast.Subscript, ast.Slice, ast.Tuple, ast.List, ast.Dict, ast.DictComp)
_NODES += (ast.comprehension, ast.BinOp, ast.operator, ast.expr_context)
_FUNCTIONS = {"print", "round", "len"}
_METHODS = {"decode": {"skip_special_tokens"}, "generate": {"max_new_tokens", "max_length", "do_sample"}}
_METHODS |= {"items": set(), "argmax": set()}
_CALLED = {"truncation", "padding", "return_tensors", "top_k", "max_new_tokens", "do_sample", "aggregation_strategy"}
_CALLED |= {"function_to_apply"}  # arguments of pipelines, tokenizers and models
_ATTRIBUTES = {"from_pretrained", "logits", "start_logits", "end_logits", *_METHODS}


def refused_code(code: str) -> str | None:
    """Return what a card's Python does beyond loading its own directory and using the model, or None.

    Everything that is not known to be harmless is refused.
    """
    try:
        nodes = list(ast.walk(ast.parse(code)))
    except (SyntaxError, ValueError, RecursionError) as error:
        return f"not valid Python ({error})"
    bound = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    imported = {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
    for node in nodes:
        if not isinstance(node, _NODES) or not _is_harmless(node, bound, imported):
            return f"line {getattr(node, 'lineno', '?')}: {ast.unparse(node)[:60]!r} does more than use the model"
    return None


def _is_harmless(node: ast.AST, bound: set[str], imported: set[str]) -> bool:
    if isinstance(node, ast.ImportFrom):
        names = [(alias.name, alias.asname) for alias in node.names]
        return node.module == "transformers" and all(
            asname is None and (name == "pipeline" or name.startswith(("AutoModel", "AutoTokenizer")))
            for name, asname in names
        )
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        return node.id not in imported | _FUNCTIONS
    if isinstance(node, ast.Name):
        return node.id in bound | imported | _FUNCTIONS
    if isinstance(node, ast.Attribute):
        return node.attr in _ATTRIBUTES
    if isinstance(node, ast.Assign | ast.For | ast.comprehension):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        stored = {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}
        value = node.value if isinstance(node, ast.Assign) else node.iter
        return "model_id" not in stored or (
            isinstance(node, ast.Assign) and isinstance(value, ast.Constant) and value.value == "."
        )
    if isinstance(node, ast.Dict):
        return all(isinstance(key, ast.Constant) and key.value in ("text", "text_pair") for key in node.keys)
    if isinstance(node, ast.DictComp):  # over the items of a tokenizer's output
        over = node.generators[0].iter
        return isinstance(over, ast.Call) and isinstance(over.func, ast.Attribute) and over.func.attr == "items"
    return not isinstance(node, ast.Call) or _is_harmless_call(node, bound)


def _is_harmless_call(call: ast.Call, bound: set[str]) -> bool:
    function, given = call.func, {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", None)
    if name in ("pipeline", "from_pretrained"):
        opened = given.get("model") if name == "pipeline" else (call.args or [None])[0]
        is_own = isinstance(opened, ast.Name) and opened.id == "model_id"
        return is_own and len(call.args) == 1 and given.keys() <= {"model", "trust_remote_code"}
    if isinstance(function, ast.Attribute):
        return name in _METHODS and given.keys() <= _METHODS[name]
    return (name in _FUNCTIONS and not given) or (name in bound and given.keys() <= _CALLED)
