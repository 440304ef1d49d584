"""Choose a greedy soup with PyTorch as the published scheme does: python theirs_greedy.py FOLDER.

FOLDER/greedy.json names the checkpoints in the order of the candidates, the folder of images and the case of the
network. For each candidate a file is read whole, two state dicts are copied and a third is mixed from them, the
classifier is built anew around the network and filled, and all images are decoded and resized by the workers of a data
loader. Prints one line of JSON: ingredients, their score, and the seconds of each part.
"""

import contextlib
import json
import pathlib
import sys
import time

import PIL.Image
import theirs_models
import torch
from torchvision import transforms

WORKERS = 2  # the published 8 are for a machine with more cores


class Images(torch.utils.data.Dataset):
    """Read the images of a folder of folders, whose names are the labels."""

    def __init__(self, folder, case):
        self._paths = sorted(pathlib.Path(folder).glob("*/*.jpg"))
        bicubic, size = transforms.InterpolationMode.BICUBIC, case["image_size"]
        self._transform = transforms.Compose(
            [
                transforms.Resize(size, interpolation=bicubic),
                transforms.CenterCrop(size),
                transforms.ToTensor(),
                transforms.Normalize(case["mean"], case["std"]),
            ]
        )

    def __len__(self):
        return len(self._paths)

    def __getitem__(self, index):
        path = self._paths[index]
        return self._transform(PIL.Image.open(path).convert("RGB")), int(path.parent.name)


class Classifier(torch.nn.Module):
    """Classify the normalised features of CLIP."""

    def __init__(self, network, case):
        super().__init__()
        self.model = network
        self.classification_head = torch.nn.Linear(case["feature_dim"], case["classes"])

    def forward(self, images):
        return self.classification_head(self.model.encode_image(images, normalize=True))


def accuracy(network, images, batch_size):
    """Evaluate as the published code does: a loader whose workers start with each pass."""
    loader = torch.utils.data.DataLoader(images, batch_size=batch_size, num_workers=WORKERS)
    right = sum((network(batch).argmax(dim=1) == labels).sum().item() for batch, labels in loader)
    return right / len(images)


def main():
    """Choose."""
    given = json.loads((pathlib.Path(sys.argv[1]) / "greedy.json").read_text())
    case, spent = given["case"], dict.fromkeys(("reload", "copy and mix", "build", "decode and evaluate"), 0.0)
    base, images = theirs_models.released(case)[0].model, Images(given["images"], case)
    soup, best, ingredients, start = None, -1.0, [], time.perf_counter()

    @contextlib.contextmanager
    def timed(part):
        begin = time.perf_counter()
        yield
        spent[part] += time.perf_counter() - begin

    with torch.inference_mode():
        for path in given["checkpoints"]:
            with timed("reload"):
                new = torch.load(path, map_location="cpu", weights_only=True)
            with timed("copy and mix"):
                count = len(ingredients)
                shares = count / (count + 1), 1 / (count + 1)
                candidate = {
                    name: (soup or new)[name].clone() * shares[0] + new[name].clone() * shares[1] for name in new
                }
            with timed("build"):
                network = Classifier(base, case).eval()
                network.load_state_dict(candidate)
            with timed("decode and evaluate"):
                score = accuracy(network, images, given["batch_size"])
            if score > best:
                soup, best, ingredients = candidate, score, [*ingredients, pathlib.Path(path).stem]
    seconds = time.perf_counter() - start
    print(json.dumps({"ingredients": ingredients, "score": best, "seconds": seconds, "parts": spent}))


if __name__ == "__main__":
    main()
