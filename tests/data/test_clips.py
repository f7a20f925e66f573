"""Labels and clips: schemes, key frames in and out of order, what can't be a clip."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frl_dgt_nb.data.clips import (
    CLASSES,
    EMOTIONS,
    SCHEMES,
    Clip,
    class_names,
    frames_problem,
    label_of,
)


def make(**changes) -> Clip:
    "A clip of frames 10 to 14, changed."
    facts = dict(
        database="d",
        subject="s",
        name="n",
        label=0,
        emotion="disgust",
        frames=tuple(Path(f"{n}.jpg") for n in range(10, 15)),
        numbers=tuple(range(10, 15)),
        onset=11,
        apex=12,
        offset=14,
    )
    return Clip(**{**facts, **changes})


def test_three_classes_of_the_paper():
    assert class_names() == CLASSES == ("negative", "positive", "surprise")
    for emotion in ("repression", "anger", "contempt", "disgust", "fear", "sadness"):  # Section 4.1
        assert label_of(emotion) == 0
    assert (label_of("happiness"), label_of("surprise"), label_of("others")) == (1, 2, None)


@pytest.mark.parametrize("classes", SCHEMES)
def test_every_name_of_a_scheme_is_its_own_label(classes):
    assert [label_of(name, classes) for name in class_names(classes)] == list(range(classes))
    assert all(
        label is None or 0 <= label < classes
        for label in (label_of(word, classes) for word in EMOTIONS)
    )


def test_five_classes_leave_out_what_casme2_has_no_class_for():
    assert (
        label_of("anger", 5) is None
        and label_of("negative", 5) is None
        and label_of("Others ", 5) == 4
    )


@given(st.text(max_size=12))
def test_any_other_word_is_an_error(word):
    if word.strip().lower() not in EMOTIONS:
        with pytest.raises(ValueError, match="not known"):
            label_of(word)


@pytest.mark.parametrize("classes", [0, 2, 6, "3"])
def test_no_such_scheme(classes):
    with pytest.raises(ValueError, match="3, 4, 5"):
        label_of("happiness", classes)


@given(st.sets(st.integers(0, 30), min_size=1), *[st.integers(0, 30)] * 3)
def test_a_problem_is_found_exactly_when_there_is_one(numbers, onset, apex, offset):
    numbers = tuple(sorted(numbers))
    fine = {onset, apex, offset} <= set(numbers) and onset < apex <= offset
    assert (frames_problem(numbers, onset, apex, offset) == "") == fine


def test_numbers_must_rise():
    for numbers in ((), (3, 2), (1, 1, 2)):
        assert "rise" in frames_problem(numbers, 1, 2, 3)


def test_positions_are_not_numbers():
    clip = make()
    assert (clip.onset_index, clip.apex_index, clip.offset_index) == (1, 2, 4)
    assert clip.subject_id == "d/s" and clip.clip_id == "d/s/n"
    assert (
        make(numbers=(10, 11, 13, 17, 20), apex=17, offset=20).apex_index == 3
    )  # frames may be missing in between


@pytest.mark.parametrize(
    "changes, word",
    [
        (dict(onset=12), "equals the apex"),
        (dict(apex=99), "apex frame 99"),
        (dict(offset=11), "time order"),
        (dict(name=""), "empty"),
        (dict(subject="a/b"), "'/'"),
        (dict(label=-1), "label"),
        (dict(label="0"), "label"),
        (dict(label=True), "label"),
        (dict(label=None), "label"),
        (dict(apex_source="guessed"), "labelled, middle, spotted"),
        (dict(frames=()), "0 frames but 5 numbers"),
        (dict(frames=(), numbers=()), "rise"),
    ],
)
def test_what_is_no_clip_says_so(changes, word):
    with pytest.raises(ValueError, match=word):
        make(**changes)


def test_an_apex_is_the_coders_unless_said_otherwise():
    assert make().apex_source == "labelled" and make(apex_source="middle") != make()


def test_a_clip_is_frozen_and_can_be_a_key():
    assert len({make(), make()}) == 1
    with pytest.raises(AttributeError):
        make().label = 1
