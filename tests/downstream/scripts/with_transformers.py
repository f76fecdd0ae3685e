"""transformers through its timm wrapper: EXPORT TILES.npy FEATURES.npy."""

import sys

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

export, tiles_path, features_path = sys.argv[1:]
processor = AutoImageProcessor.from_pretrained(export)
encoder = AutoModel.from_pretrained(export).eval()
inputs = processor([Image.fromarray(tile) for tile in np.load(tiles_path)], return_tensors="pt")
with torch.inference_mode():
    np.save(features_path, encoder(**inputs).pooler_output.numpy())
assert encoder.config.pathology["mpp"] == 0.5, "the pathology block comes through"
