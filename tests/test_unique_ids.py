import os
from uuid import UUID

import pytest

import cascade as cs
from cascade._unique_ids import unique_id
from cascade.runtime.events import Event


def test_ids_differ_and_have_the_form_of_a_random_uuid() -> None:
    ids = [unique_id(), unique_id(), cs.Param("p")._uuid, Event().event_id]
    assert len(set(ids)) == len(ids)
    assert [UUID(each).version for each in ids] == [4] * len(ids)
    assert [str(UUID(each)) for each in ids] == ids


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_has_other_ids() -> None:
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        os.write(writer, unique_id().encode())
        os._exit(0)
    os.waitpid(child, 0)
    with os.fdopen(reader) as output:
        os.close(writer)
        assert output.read()[:-12] != unique_id()[:-12]
