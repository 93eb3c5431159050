"""Trains one-step and few-step image generators on TPU pods."""

import os

__version__ = "0.1.0"

# TensorFlow is here only to write TensorBoard's files, and should be silent about everything else.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
