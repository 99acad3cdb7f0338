"""Protobuf by hand: what is around messages that the generated classes encode, and the few fields that are hot.

In protobuf to concatenate two encoded messages is to merge them, and to concatenate repeated fields is to list both
(protobuf.dev, "Encoding").
"""

_LENGTH_DELIMITED = 2
_SEVEN_BITS = 0x7F
_NEGATIVE = 1 << 64


def field(number: int, content: bytes) -> bytes:
    """A field of bytes, text, or of a message, whose number is below 16."""
    size = len(content)
    return _TAGS[number] + (_SMALL[size] if size <= _SEVEN_BITS else varint(size)) + content


def varint(number: int) -> bytes:
    """A whole number of 64 bits as protobuf writes it: seven bits a byte, the lowest first."""
    if number < 0:
        number += _NEGATIVE
    encoded = bytearray()
    while number > _SEVEN_BITS:
        encoded.append(number & _SEVEN_BITS | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


_TAGS = tuple(bytes((number << 3 | _LENGTH_DELIMITED,)) for number in range(16))
_SMALL = tuple(bytes((number,)) for number in range(_SEVEN_BITS + 1))
