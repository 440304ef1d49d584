"""List the ways in which projects name the tensors of a network, and tell them apart."""

import dataclasses
from collections.abc import Callable

from soups.models.architectures import Architecture
from soups.models.tables import align, bert, clip, decoder, efficientnet, parts, resnet, t5, vit
from soups.models.tables.parts import Table


@dataclasses.dataclass(frozen=True)
class Layout:
    """Describe one project's names.

    Attributes:
        owner: whose names they are, for messages.
        families: of the architectures that such files can hold.
        sign: the tensor by which it is recognised.
        table: from the architecture to the table without a head.
        left_out: a regex of tensors that the network does without.
        head: from the architecture and a number of classes to the table of the head; None where files have none.
    """

    owner: str
    families: tuple[str, ...]
    sign: str
    table: Callable[[Architecture], Table]
    left_out: str = r"(?!)"
    head: Callable[[Architecture, int], Table] | None = None


def _prefixed(prefix, table):
    return lambda arch: {prefix + name: part for name, part in table(arch).items()}


def _linear(name):
    return lambda arch, classes: parts.linear(name, arch.head, (arch.feature_dim,), (classes,))


LAYOUTS = (
    Layout(
        "the released model soups'",
        ("clip",),
        "model.visual.conv1.weight",
        _prefixed("model.", clip.openai_image),
        rf"model\.({clip.OPENAI_TEXT})",
        _linear("classification_head"),
    ),
    Layout("OpenAI's and open_clip's", ("clip",), "visual.conv1.weight", clip.openai_image, clip.OPENAI_TEXT),
    Layout("Hugging Face's CLIP", ("clip",), "vision_model.embeddings.class_embedding", clip.hf_image, clip.HF_TEXT),
    Layout(
        "AugReg's and big_vision's", ("augreg",), "Transformer/encoder_norm/scale", vit.augreg, head=vit.augreg_head
    ),
    Layout("timm's ViT", ("timm",), "patch_embed.proj.weight", vit.timm, head=_linear("head")),
    Layout(
        "Hugging Face's ViT",
        ("huggingface",),
        "vit.embeddings.cls_token",
        _prefixed("vit.", vit.huggingface),
        head=_linear("classifier"),
    ),
    Layout("Hugging Face's ViT", ("huggingface",), "embeddings.cls_token", vit.huggingface, vit.HF_POOLER),
    Layout("torchvision's", ("torchvision",), "layer1.0.bn3.weight", resnet.torchvision, parts.COUNTERS, _linear("fc")),
    Layout(
        "EfficientNet-PyTorch's",
        ("efficientnet-pytorch",),
        "_conv_stem.weight",
        efficientnet.efficientnet_pytorch,
        parts.COUNTERS,
        _linear("_fc"),
    ),
    Layout(
        "Hugging Face's BERT",
        ("bert",),
        "bert.embeddings.word_embeddings.weight",
        bert.bert,
        bert.BERT_REST,
        bert.head,
    ),
    Layout(
        "Hugging Face's RoBERTa",
        ("roberta",),
        "roberta.embeddings.word_embeddings.weight",
        bert.roberta,
        bert.ROBERTA_REST,
        bert.head,
    ),
    Layout(
        "Microsoft's DeBERTa",
        ("deberta-v2",),
        "lm_predictions.lm_head.bias",
        bert.deberta_released,
        bert.DEBERTA_REST,
        bert.head,
    ),
    Layout(
        "Hugging Face's DeBERTa",
        ("deberta-v2",),
        "deberta.embeddings.word_embeddings.weight",
        bert.deberta,
        bert.DEBERTA_REST,
        bert.head,
    ),
    Layout(
        "Hugging Face's DeBERTa", ("deberta-v2",), "encoder.rel_embeddings.weight", bert.deberta_bare, bert.DEBERTA_REST
    ),
    Layout(
        "Hugging Face's BERT or RoBERTa",
        ("bert", "roberta"),
        "embeddings.word_embeddings.weight",
        bert.bare,
        f"{bert.BERT_REST}|{bert.ROBERTA_REST}",
    ),
    Layout(
        "Hugging Face's ALIGN",
        ("align",),
        "vision_model.embeddings.convolution.weight",
        align.image,
        align.ALIGN_TEXT,
    ),
    Layout("Hugging Face's T5", ("t5",), "shared.weight", t5.t5, t5.T5_REST),
    Layout("Hugging Face's GPT-2", ("gpt2",), "transformer.wpe.weight", decoder.gpt2, decoder.GPT2_REST),
    Layout("Hugging Face's GPT-2", ("gpt2",), "wpe.weight", lambda arch: decoder.gpt2(arch, ""), decoder.GPT2_REST),
    Layout("Hugging Face's Llama", ("llama",), "model.embed_tokens.weight", decoder.llama, decoder.LLAMA_REST),
    Layout("GGUF's", ("llama",), "token_embd.weight", decoder.gguf),
)
TEXT_LAYOUTS = (
    Layout("OpenAI's and open_clip's", ("clip",), "token_embedding.weight", clip.openai_text, clip.OPENAI_IMAGE),
    Layout(
        "Hugging Face's CLIP", ("clip",), "text_model.embeddings.token_embedding.weight", clip.hf_text, clip.HF_IMAGE
    ),
    Layout(
        "Hugging Face's ALIGN",
        ("align",),
        "text_model.embeddings.word_embeddings.weight",
        align.text,
        align.ALIGN_IMAGE,
    ),
)
