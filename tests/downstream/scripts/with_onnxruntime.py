"""ONNX Runtime: EXPORT TILES.npy FEATURES.npy. uint8 tiles go in as they are; in one batch and one by one."""

import sys

import numpy as np
import onnxruntime

export, tiles_path, features_path = sys.argv[1:]
session = onnxruntime.InferenceSession(f"{export}/program/encoder.onnx", providers=["CPUExecutionProvider"])
tiles = np.ascontiguousarray(np.load(tiles_path).transpose(0, 3, 1, 2))
(features,) = session.run(["features"], {"tiles": tiles})
single = np.concatenate([session.run(["features"], {"tiles": tile[None]})[0] for tile in tiles])
assert np.allclose(features, single, rtol=0, atol=1e-4 * np.abs(features).max())
assert session.get_modelmeta().custom_metadata_map["mpp"] == "0.5"
np.save(features_path, features)
