"""Requests made of encoded log records."""

from collections import defaultdict
from collections.abc import Iterable

from cascade.connectors.otel._protobuf import field

_RESOURCE_LOGS, _SCOPE_LOGS = 1, 2


def request(resource: bytes, items: Iterable[bytes]) -> bytes:
    """An `ExportLogsServiceRequest` with all of the items under one resource, those of one scope together.

    An item is an encoded `ScopeLogs` that begins with its scope, which has less than 128 bytes; `resource` is an encoded
    `ResourceLogs` without any.
    """
    scopes: defaultdict[bytes, list[bytes]] = defaultdict(list)
    for item in items:
        end = 2 + item[1]
        scopes[item[:end]].append(item[end:])
    listed = (field(_SCOPE_LOGS, scope + b"".join(records)) for scope, records in scopes.items())
    return field(_RESOURCE_LOGS, resource + b"".join(listed))
