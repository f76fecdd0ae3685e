"""A torch.export program without timm: EXPORT TILES.npy FEATURES.npy."""

import sys

import numpy as np
import torch

export, tiles_path, features_path = sys.argv[1:]
encoder = torch.export.load(f"{export}/program/encoder.pt2").module()
assert "timm" not in sys.modules
tiles = torch.from_numpy(np.load(tiles_path)).permute(0, 3, 1, 2).contiguous()
with torch.inference_mode():
    np.save(features_path, encoder(tiles).numpy())
