"""Converted students against Keras itself: the largest difference of their probabilities on real pictures.

    python benchmarks/keras_parity.py --json keras_parity.json

ViT-B/32, B/16, L/32 and L/16 of vit-keras with both heads (the authors' of two layers, and one linear layer), weights
drawn by chance, are written by Keras in each of its layouts: by vit-keras 0.1.2 with Keras 2.15 and the GELU of
tensorflow_addons, as the authors' scripts are, and by vit-keras 0.2.0 with Keras 3. Each file is converted by
`xmodal models convert`; the student then gets the same pictures as bytes, and scales them by its own config. Ends with
exit code 1 where a difference is above 1e-4.

The Keras environments are made the first time (minutes and gigabytes, from the package index that pip is set to).
`--quick`: B/32 alone. L/16 takes 4 GB of memory, and as much in the temporary folder.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import report_file
import torch
from peers_environment import FOLDER, environment_of_peers, versions_of_peers
from PIL import Image

from shards.batches import Normaliser
from xmodal.students import input_spec, load_student

HERE = Path(__file__).resolve().parent
TOLERANCE = 1e-4
PICTURES = HERE.parent / "data" / "emoji" / "fluent3d"
# OpenCV is imported by vit-keras, which does not say so.
ENVIRONMENTS = {
    "keras2": {
        "tensorflow-cpu": "2.15.1",
        "tensorflow-addons": "0.23.0",
        "vit-keras": "0.1.2",
        "opencv-python-headless": "4.11.0.86",
        "numpy": "1.26.4",
    },
    "keras3": {
        "tensorflow-cpu": "2.18.1",
        "keras": "3.15.1",
        "vit-keras": "0.2.0",
        "opencv-python-headless": "4.11.0.86",
    },
}
ARCHITECTURES = {"vit_b32": 224, "vit_b16": 384, "vit_l32": 384, "vit_l16": 384}
"""vit-keras's name → the side of the pictures, as the paper has it."""


def main() -> int:
    """Compare all; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="B/32 alone")
    parser.add_argument("--json", help="write the report to this file")
    parser.add_argument("--pictures", default=str(PICTURES), help="folder of pictures")
    parser.add_argument("--num-pictures", type=int, default=8)
    parser.add_argument("--environments", default=str(FOLDER), help="folder of the Keras environments")
    parser.add_argument("--architectures", nargs="+", choices=ARCHITECTURES)
    parser.add_argument("--keras", nargs="+", choices=ENVIRONMENTS, default=list(ENVIRONMENTS))
    arguments = parser.parse_args()
    names = arguments.architectures or list(ARCHITECTURES)[: 1 if arguments.quick else None]
    results: dict[str, dict[str, list[float]]] = {}
    versions = {}
    with tempfile.TemporaryDirectory(prefix="keras-parity-") as folder:
        pictures = Path(folder) / "pictures.npz"
        np.savez(pictures, **pixels_of(Path(arguments.pictures), arguments.num_pictures))
        for keras in arguments.keras:
            python = environment_of_peers(Path(arguments.environments) / keras, ENVIRONMENTS[keras])
            versions |= {f"{keras}: {k}": v for k, v in versions_of_peers(python, list(ENVIRONMENTS[keras])).items()}
            for name in names:
                for head in ("mlp", "linear"):
                    with tempfile.TemporaryDirectory(dir=folder) as written:
                        command = [HERE / "keras_parity_writer.py", written, pictures, name, ARCHITECTURES[name], head]
                        subprocess.run([str(python), *map(str, command)], check=True)
                        results[f"{name}, {head} head, {keras}"] = differences(Path(written), pictures, keras, head)
    # Not by max(), which passes over what is not a number.
    worst = float(np.max([value for figures in results.values() for values in figures.values() for value in values]))
    work = f"{arguments.num_pictures} pictures; the largest difference of a probability"
    document = report_file.report("keras_parity", work, ["torch", "timm", "h5py"], results, {"largest": worst})
    document["versions"] |= versions
    report_file.write(document, arguments.json)
    return 0 if worst <= TOLERANCE else 1


def pixels_of(folder: Path, count: int) -> dict[str, np.ndarray]:
    """Side → uint8 `(count, side, side, 3)`: pictures stretched to squares once, so that both sides get the same."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".jpg", ".png", ".webp"))
    chosen = [Image.open(file).convert("RGB") for file in files[:: max(1, len(files) // count)][:count]]
    return {
        str(side): np.stack([np.asarray(picture.resize((side, side), Image.Resampling.BILINEAR)) for picture in chosen])
        for side in set(ARCHITECTURES.values())
    }


def differences(written: Path, pictures: Path, keras: str, head: str) -> dict[str, list[float]]:
    """Layout → by how much the student of that file differs from Keras."""
    expected = np.load(written / "expected.npy")
    assert np.ptp(expected, axis=0).max() > 1e-3, "all pictures are one to this model: nothing could be seen"
    # Keras 2.15 writes the GELU of tensorflow_addons as its own; that of the authors, 2.8, said which.
    options = ["--gelu", "tanh"] if (keras, head) == ("keras2", "mlp") else []
    found = {}
    for file in sorted(written.glob("*.h5")):
        student = written / "student" / file.stem
        command = [sys.executable, "-m", "xmodal.cli", "models", "convert", str(file), str(student), *options]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        file.unlink()
        network = load_student(str(student))
        spec = input_spec(network)
        pixels = torch.from_numpy(np.load(pictures)[str(spec.size)].transpose(0, 3, 1, 2).copy())
        normalise = Normaliser(spec.mean, spec.std)
        with torch.inference_mode():
            ours = torch.cat([network(normalise(batch)).softmax(dim=1) for batch in pixels.split(4)])
        found[file.name] = [float(np.abs(ours.numpy() - expected).max())]
        (student / "model.safetensors").unlink()
        print(f"{keras}, {head} head, {network.pretrained_cfg['architecture']}, {file.name}: {found[file.name][0]:.2e}")
    return found


if __name__ == "__main__":
    sys.exit(main())
