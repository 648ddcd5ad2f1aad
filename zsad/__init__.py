__version__ = "0.1.0"

from zsad.core import Detector, Explanation, ImageError, Prediction, create_detector, list_detectors, load_image, register_detector
