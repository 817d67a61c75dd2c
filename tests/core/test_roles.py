"""The rule by which layers stay dense unless their role is asked for."""

from __future__ import annotations

from sparseflow.core.roles import ROLES, roles_of

IMAGE, WIDE = ((16, 3, 3, 3), 1), ((16, 16, 3, 3), 1)
DEPTHWISE, GROUPED = ((16, 1, 3, 3), 16), ((16, 4, 3, 3), 4)
LINEAR = ((10, 16), 1)


def test_each_role_is_found_and_grouped_convolutions_have_none() -> None:
    found = roles_of([IMAGE, WIDE, DEPTHWISE, GROUPED, LINEAR, LINEAR])
    assert found == ("stem", "", "depthwise", "", "", "classifier")
    assert set(found) == {"", *ROLES}


def test_the_first_convolution_is_a_stem_and_so_is_what_reads_an_image() -> None:
    assert roles_of([WIDE, WIDE, IMAGE]) == ("stem", "", "stem")
    assert roles_of([((16, 16, 3), 1), ((16, 16, 3), 1)]) == ("stem", "")  # one axis of positions
    assert roles_of([LINEAR, WIDE, WIDE]) == ("", "stem", "")


def test_only_the_last_linear_layer_is_a_classifier() -> None:
    assert roles_of([LINEAR, LINEAR, LINEAR]) == ("", "", "classifier")
    assert roles_of([WIDE, WIDE, LINEAR, WIDE]) == ("stem", "", "", "")


def test_a_network_of_one_layer_has_no_role_to_spare() -> None:
    assert roles_of([LINEAR]) == roles_of([IMAGE]) == ("",)
    assert roles_of([]) == ()
