"""The record book is that of the stored records, and they are records."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import records

from flowlib import checkpoints

STORED = json.loads(records.STORED.read_text())


def test_the_book_is_up_to_date():
    assert records.BOOK.read_text() == records.book(STORED)


def test_every_entry_was_a_record():
    assert all(records.is_record(new, STORED[:i]) for i, new in enumerate(STORED))


@pytest.mark.parametrize(
    ("bits", "seconds", "record"),
    [(3.0, 100, False), (2.9, 100, True), (3.0, 99, True), (3.1, 101, False), (3.1, 50, True)],
)
def test_a_record_is_better_or_quicker_than_all_before(bits, seconds, record):
    earlier = [{"bits_per_dim": 4.0, "seconds": 90}, {"bits_per_dim": 3.0, "seconds": 100}]
    assert records.is_record({"bits_per_dim": bits, "seconds": seconds}, earlier) == record


def test_the_entry_of_a_shipped_flow_says_what_its_card_says():
    card = checkpoints.read_card("cifar10")
    new = records.entry(card, "a change", "1a2b3c4")
    assert new["bits_per_dim"] == card["results"]["bits_per_dim"]
    assert f"| {new['bits_per_dim']:.4f} ± " in records.book([new])


def test_what_is_no_record_is_not_entered(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(records, "STORED", tmp_path / "records.json")
    monkeypatch.setattr(records, "BOOK", tmp_path / "records.md")
    given = ["records.py", "cifar10", "--change", "a change", "--commit", "1a2b3c4"]
    monkeypatch.setattr(sys, "argv", given)
    records.main()
    assert "a change" in records.BOOK.read_text()
    with pytest.raises(SystemExit):
        records.main()
    assert "an earlier entry" in capsys.readouterr().err
    assert len(json.loads(records.STORED.read_text())) == 1
