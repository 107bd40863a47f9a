"""Run by the python of a Keras environment: ViTs of vit-keras with weights drawn by chance, and what they predict.

    keras_parity_writer.py FOLDER PICTURES ARCHITECTURE SIZE HEAD

Writes FOLDER/model.h5 (whole), FOLDER/weights.h5 (Keras 2) and FOLDER/m.weights.h5 (alone); FOLDER/expected.npy of the
pictures of a folder in the order of their names, and FOLDER/fast.npy of the same with JPEGs decoded the faster way that
TensorFlow takes by itself.
"""

import os
import sys
import warnings
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
warnings.filterwarnings("ignore")

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from vit_keras import vit  # noqa: E402


def main() -> None:
    """Make one model and write what there is of it."""
    folder, pictures, architecture, side, head = sys.argv[1:]
    size = int(side)
    keras2 = keras.__version__.startswith("2.")
    make = getattr(vit, architecture)
    if head == "linear":
        model = make(image_size=size, classes=3, activation="softmax", pretrained=False, pretrained_top=False)
    else:
        # As in the authors' scripts; tensorflow_addons is there for Keras 2 alone.
        if keras2:
            import tensorflow_addons

            gelu = tensorflow_addons.activations.gelu
        else:
            gelu = "gelu"
        backbone = make(image_size=size, pretrained=False, include_top=False, pretrained_top=False)
        layers = [backbone, tf.keras.layers.Dense(32, activation=gelu), tf.keras.layers.Dense(3, activation="softmax")]
        model = tf.keras.Sequential(layers, name="vision_transformer")
    generator = np.random.default_rng(5)
    # As they are made, biases and the class token are zeros: mistakes about them would not be seen.
    for weight in model.weights:
        values = np.asarray(weight)
        weight.assign(values + generator.normal(0, 0.02, values.shape).astype("float32"))
    files = sorted(Path(pictures).iterdir())
    for name, dct_method in (("expected", "INTEGER_ACCURATE"), ("fast", "INTEGER_FAST")):
        pixels = np.stack([pixels_of(file, size, dct_method) for file in files])
        # The authors' B/32 models take pixels / 255; for the others they call vit_keras's own function.
        scaled = pixels / 255 if architecture == "vit_b32" else vit.preprocess_inputs(pixels)
        np.save(Path(folder, f"{name}.npy"), model.predict(scaled, batch_size=4, verbose=0))
    model.save(f"{folder}/model.h5")
    if keras2:
        model.save_weights(f"{folder}/weights.h5")
    model.save_weights(f"{folder}/m.weights.h5")


def pixels_of(file: Path, size: int, dct_method: str) -> np.ndarray:
    """float32 `(size, size, 3)`, 0 to 255, as the authors' scripts have it, but for how JPEGs are decoded."""
    content = tf.io.read_file(str(file))
    if file.suffix == ".jpg":
        decoded = tf.io.decode_jpeg(content, channels=3, dct_method=dct_method)
    else:
        decoded = tf.io.decode_image(content, channels=3, expand_animations=False)
    return tf.image.resize(decoded, (size, size)).numpy()


if __name__ == "__main__":
    main()
