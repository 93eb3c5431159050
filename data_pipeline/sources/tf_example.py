"""Reads tf.train.Example messages without TensorFlow, whose import takes seconds.

Usage:
    parse_example(record)  # {"image": [b"..."], "label": [207]}, or None
"""

import functools
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

_Kind = descriptor_pb2.FieldDescriptorProto


def parse_example(record: bytes) -> dict[str, list[bytes] | list[int] | list[float]] | None:
    """The features of a serialized tf.train.Example by name; None where it is none."""
    example = _example_class()()
    try:
        example.ParseFromString(record)
    except message.DecodeError:
        return None
    features: dict[str, Any] = {}
    for name, feature in example.features.feature.items():
        kind = feature.WhichOneof("kind")
        features[name] = list(getattr(feature, kind).value) if kind else []
    return features


@functools.cache
def _example_class() -> Any:
    """The message class, after tensorflow/core/example/example.proto and feature.proto.

    It lives in a pool of its own: TensorFlow puts the same names into the common one.
    """
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="t", syntax="proto3")
    lists = (
        ("BytesList", _Kind.TYPE_BYTES),
        ("FloatList", _Kind.TYPE_FLOAT),
        ("Int64List", _Kind.TYPE_INT64),
    )
    feature = descriptor_pb2.DescriptorProto(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, (name, kind) in enumerate(lists, start=1):
        values = file.message_type.add(name=name)
        values.field.add(name="value", number=1, type=kind, label=_Kind.LABEL_REPEATED)
        field = feature.field.add(name=name.lower(), number=number, type=_Kind.TYPE_MESSAGE)
        field.type_name, field.label, field.oneof_index = f".t.{name}", _Kind.LABEL_OPTIONAL, 0
    file.message_type.append(feature)
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    optional = _Kind.LABEL_OPTIONAL
    entry.field.add(name="key", number=1, type=_Kind.TYPE_STRING, label=optional)
    entry.field.add(
        name="value", number=2, type=_Kind.TYPE_MESSAGE, label=optional, type_name=".t.Feature"
    )
    features.field.add(
        name="feature",
        number=1,
        type=_Kind.TYPE_MESSAGE,
        label=_Kind.LABEL_REPEATED,
        type_name=".t.Features.FeatureEntry",
    )
    example = file.message_type.add(name="Example")
    example.field.add(
        name="features", number=1, type=_Kind.TYPE_MESSAGE, label=optional, type_name=".t.Features"
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Example"))
