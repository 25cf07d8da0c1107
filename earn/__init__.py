"""EARN recommenders for the device: model, training, catalog, and the formats that the other rooms share."""

__version__ = "0.1.0"
