"""The paper's published models as students: their Keras weights converted, downloaded and kept."""
