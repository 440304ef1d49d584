"""Make the head of an image classifier from the names of its classes, with the text tower of CLIP."""

from collections.abc import Callable, Sequence

import numpy as np

from soups.arguments import check_within
from soups.formats.tensors import listed


def zero_shot_head(
    text_apply: Callable,
    tokenizer: Callable[[Sequence[str]], np.ndarray],
    class_names: Sequence[str],
    templates: Sequence[str],
    scale: float = 100.0,
    *,
    batch_size: int = 256,
    progress: Callable[[int], None] | None = None,
) -> dict[str, np.ndarray]:
    """Return the head {"kernel": [D, C], "bias": [C]} that tells images apart by the texts of their classes.

    kernel_c = scale · u(1/T Σ_t u(f(template_t with the name of class c))), where u(x) = x / ‖x‖; the bias is zero. It
    belongs on features of images of norm 1. Norms and means are in float64, the result is float32.

    Args:
        text_apply: maps tokens int32 [B, L] to features [B, D]; all calls have one shape, L is of the longest prompt.
        tokenizer: maps strings to tokens [N, 77] that end in zeros, as from `soups.models.clip_tokenizer`.
        class_names: C names, in the order of the labels.
        templates: T strings, each with one "{}" for the name.
        scale: 100 for the published soups; WiSE-FT has the exponential of the checkpoint's logit_scale.
        batch_size: texts in one call, rounded down to whole classes; at least one class.
        progress: is called with the number of classes done since the last call.

    Anything else, and a text tower whose features are not finite or all zero, is a ValueError that names the culprits.

    Radford et al., "Learning transferable visual models from natural language supervision", 2021, arXiv:2103.00020.
    """
    class_names, templates = _checked(class_names, templates)
    check_within("scale", scale, "(0, inf)")
    check_within("batch_size", batch_size, "[1, inf)", whole=True)
    tokens_CxTxL = _tokens(tokenizer, class_names, templates)
    at_once = min(max(1, batch_size // len(templates)), len(class_names))
    columns = []
    for start in range(0, len(class_names), at_once):
        names = class_names[start : start + at_once]
        # the last batch is filled up: of one shape, `text_apply` is compiled once
        tokens_BxTxL = tokens_CxTxL[np.minimum(np.arange(start, start + at_once), len(class_names) - 1)]
        features_BxD = text_apply(tokens_BxTxL.reshape(-1, tokens_BxTxL.shape[-1]))
        features_BxTxD = np.asarray(features_BxD, np.float64).reshape(at_once, len(templates), -1)
        columns.append(_directions(features_BxTxD[: len(names)], names))
        if progress is not None:
            progress(len(names))
    kernel_DxC = (scale * np.concatenate(columns).T).astype(np.float32, order="C")
    return {"kernel": kernel_DxC, "bias": np.zeros(len(class_names), np.float32)}


def _tokens(tokenizer, class_names, templates):
    """Return the tokens of all prompts [C, T, L], cut to the longest: most are a third of what the tower takes."""
    texts = [template.replace("{}", name) for name in class_names for template in templates]
    tokens_NxL = np.asarray(tokenizer(texts))
    longest = np.flatnonzero(tokens_NxL.any(axis=0)).max(initial=0) + 1
    return tokens_NxL[:, :longest].reshape(len(class_names), len(templates), longest)


def _directions(features_CxTxD, names):
    with np.errstate(invalid="ignore", divide="ignore"):
        directions_CxD = _unit(_unit(features_CxTxD).mean(axis=1))
    if bad := [name for name, row in zip(names, directions_CxD, strict=True) if not np.isfinite(row).all()]:
        raise ValueError(f"the text tower gives features that are not finite, or all zeros, for {listed(bad)}")
    return directions_CxD


def _unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def _checked(class_names, templates):
    for what, strings in (("class names", class_names), ("templates", templates)):
        if isinstance(strings, str):
            raise ValueError(f"{what} must be a sequence of strings, not the one string {strings!r}")
        if len(strings) == 0:
            raise ValueError(f"a zero-shot head needs {what}, but none were given")
    if bad := [index for index, name in enumerate(class_names) if not isinstance(name, str) or not name.strip()]:
        raise ValueError(f"class names must be non-empty strings, but those at {bad[:10]} are not")
    if bad := [template for template in templates if not isinstance(template, str) or template.count("{}") != 1]:
        raise ValueError(
            f"a template needs one {{}} for the name of the class, which these lack: {listed(map(str, bad))}"
        )
    return list(class_names), list(templates)
