"""Run by the python of a Keras environment: ViTs of vit-keras with weights drawn by chance, and what they predict.

    keras_parity_writer.py FOLDER PICTURES.npz ARCHITECTURE SIZE HEAD

Writes FOLDER/model.h5 (whole), FOLDER/weights.h5 (Keras 2) and FOLDER/m.weights.h5 (alone), and FOLDER/expected.npy.
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
    pixels = np.load(pictures)[side].astype("float32")
    # The authors' B/32 models take pixels / 255; for the others they call vit_keras's own function.
    scaled = pixels / 255 if architecture == "vit_b32" else vit.preprocess_inputs(pixels)
    np.save(Path(folder, "expected.npy"), model.predict(scaled, batch_size=4, verbose=0))
    model.save(f"{folder}/model.h5")
    if keras2:
        model.save_weights(f"{folder}/weights.h5")
    model.save_weights(f"{folder}/m.weights.h5")


if __name__ == "__main__":
    main()
