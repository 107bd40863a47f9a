"""Converted students against Keras itself: the largest difference of their probabilities on pictures of any size.

    python benchmarks/keras_parity.py --json keras_parity.json

ViT-B/32, B/16, L/32 and L/16 of vit-keras with both heads (the authors' of two layers, and one linear layer), weights
drawn by chance, are written by Keras in each of its layouts: by vit-keras 0.1.2 with Keras 2.15 and the GELU of
tensorflow_addons, as the authors' scripts are, and by vit-keras 0.2.0 with Keras 3. Each file is converted by
`xmodal models convert`. Both sides get the same files of pictures, by default photos of scikit-learn and drawings:
Keras by tf.image.resize and the scaling of pixels of the authors' scripts, the student as `xmodal evaluate` has them.
Ends with exit code 1 where a difference is above 1e-4.

TensorFlow is told to decode JPEGs as exactly as we do. By itself it takes a faster way, which changes pixels: how large
a difference that alone makes is told, too.

The Keras environments are made the first time (minutes and gigabytes, from the package index that pip is set to).
`--quick`: B/32 alone. L/16 takes 4 GB of memory, and as much in the temporary folder.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import report_file
import sklearn
import torch
from peers_environment import FOLDER, environment_of_peers, versions_of_peers
from PIL import ExifTags, Image

from shards.decode import decode_rgb
from xmodal.benchmarks import PICTURE_SUFFIXES
from xmodal.evaluation.predict import PictureFile
from xmodal.evaluation.predictor import Predictor
from xmodal.students import load_student

HERE = Path(__file__).resolve().parent
TOLERANCE = 1e-4
PICTURES = (Path(sklearn.__file__).parent / "datasets" / "images", HERE.parent / "data" / "emoji" / "fluent3d")
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
    parser.add_argument("--pictures", nargs="+", type=Path, default=PICTURES, help="folders of pictures")
    parser.add_argument("--num-pictures", type=int, default=4, help="of each of these folders, at most")
    parser.add_argument("--environments", default=str(FOLDER), help="folder of the Keras environments")
    parser.add_argument("--architectures", nargs="+", choices=ARCHITECTURES)
    parser.add_argument("--keras", nargs="+", choices=ENVIRONMENTS, default=list(ENVIRONMENTS))
    arguments = parser.parse_args()
    names = arguments.architectures or list(ARCHITECTURES)[: 1 if arguments.quick else None]
    results: dict[str, dict[str, list[float]]] = {}
    of_decoding = []
    versions = {}
    with tempfile.TemporaryDirectory(prefix="keras-parity-") as folder:
        pictures = Path(folder) / "pictures"
        num_pictures = write_pictures(arguments.pictures, arguments.num_pictures, pictures)
        for keras in arguments.keras:
            python = environment_of_peers(Path(arguments.environments) / keras, ENVIRONMENTS[keras])
            versions |= {f"{keras}: {k}": v for k, v in versions_of_peers(python, list(ENVIRONMENTS[keras])).items()}
            for name in names:
                for head in ("mlp", "linear"):
                    with tempfile.TemporaryDirectory(dir=folder) as written:
                        command = [HERE / "keras_parity_writer.py", written, pictures, name, ARCHITECTURES[name], head]
                        subprocess.run([str(python), *map(str, command)], check=True)
                        results[f"{name}, {head} head, {keras}"] = differences(Path(written), pictures, keras, head)
                        exact, fast = (np.load(Path(written, f"{how}.npy")) for how in ("expected", "fast"))
                        of_decoding.append(float(np.abs(exact - fast).max()))
    # Not by max(), which passes over what is not a number.
    worst = float(np.max([value for figures in results.values() for values in figures.values() for value in values]))
    work = f"{num_pictures} pictures; the largest difference of a probability"
    ratios = {"largest": worst, "largest by TensorFlow's faster decoding of JPEGs": max(of_decoding)}
    document = report_file.report("keras_parity", work, ["torch", "timm", "h5py"], results, ratios)
    document["versions"] |= versions
    report_file.write(document, arguments.json)
    return 0 if worst <= TOLERANCE else 1


def write_pictures(folders: list[Path], most: int, target: Path) -> int:
    """Write pictures of some folders to another, in formats that TensorFlow reads; returns how many.

    A JPEG stays as it is, unless it is to be turned or has other colours; all others become PNGs, as we decode them.
    """
    target.mkdir()
    chosen: list[Path] = []
    for folder in folders:
        files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURE_SUFFIXES)
        chosen += files[:: max(1, len(files) // most)][:most]
    for number, file in enumerate(chosen):
        with Image.open(file) as image:
            is_upright = image.getexif().get(ExifTags.Base.Orientation, 1) == 1
            as_it_is = image.format == "JPEG" and image.mode in ("RGB", "L") and is_upright
        if as_it_is:
            shutil.copy(file, target / f"{number:04d}.jpg")
        else:
            decode_rgb(file.read_bytes()).save(target / f"{number:04d}.png")
    return len(chosen)


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
        files = [PictureFile(path) for path in sorted(pictures.iterdir())]
        predictor = Predictor(network, device=torch.device("cpu"))
        batches = predictor(files[start : start + 4] for start in range(0, len(files), 4))
        ours = np.concatenate([batch.probabilities for batch in batches])
        found[file.name] = [float(np.abs(ours - expected).max())]
        (student / "model.safetensors").unlink()
        print(f"{keras}, {head} head, {network.pretrained_cfg['architecture']}, {file.name}: {found[file.name][0]:.2e}")
    return found


if __name__ == "__main__":
    sys.exit(main())
