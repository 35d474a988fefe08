"""Recipes: complete, checked, overridable."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest
from typer.testing import CliRunner

from voxloop.cli import app
from voxloop.errors import SettingError
from voxloop.steps.training import recipes
from voxloop.steps.training.recipes import Recipe


@pytest.mark.parametrize("name", sorted(recipes.RECIPES))
def test_named_recipes_survive_json(name: str) -> None:
    recipe = recipes.named(name)
    assert recipe.name == name
    assert recipes.from_dict(json.loads(json.dumps(recipe.as_dict()))) == recipe
    assert set(recipe.as_dict()) == {f.name for f in fields(Recipe)}


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(SettingError, match="did you mean quick"):
        recipes.named("quik")


@pytest.mark.parametrize(
    ("setting", "name", "value"),
    [
        ("learning_rate=1e-4", "learning_rate", 1e-4),
        ("accumulation=4", "accumulation", 4),
        ("max_seconds=none", "max_seconds", None),
        ("max_steps=12", "max_steps", 12),
        ("method=lora", "method", "lora"),
        ("freeze_encoder=yes", "freeze_encoder", True),
        ("lora_targets=q_proj, v_proj", "lora_targets", ("q_proj", "v_proj")),
        ("replay_from=none", "replay_from", ()),
        ("noise_folder=my noises", "noise_folder", "my noises"),
        ("noise_folder=none", "noise_folder", None),
    ],
)
def test_overrides_take_the_type_of_the_field(setting: str, name: str, value: object) -> None:
    assert getattr(recipes.override(recipes.named("quick"), [setting]), name) == value


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("learning_rat=1", "did you mean learning_rate"),
        ("learning_rate=fast", "'fast': give a number"),
        ("accumulation=1.5", "'1.5': give a whole number"),
        ("method=half", "choose one of full, lora"),
        ("freeze_encoder=perhaps", "true or false"),
        ("learning_rate", "key=value"),
        ("name=mine", "no setting 'name'"),
        ("batch_seconds=0", "above 0"),
        ("join_clips=1", "join_share=0"),
        ("warmup_steps=-1", "0 or more"),
        ("noise_share=1.5", "from 0 to 1"),
        ("telephone_share=-0.1", "from 0 to 1"),
        ("replay_share=1", "at least 0 and below 1"),
        ("layer_decay=0", "above 0 and at most 1"),
        ("layer_decay=1.1", "above 0 and at most 1"),
    ],
)
def test_wrong_overrides_are_refused_with_the_remedy(setting: str, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        recipes.override(recipes.named("quick"), [setting])


def test_a_recipe_needs_an_end() -> None:
    with pytest.raises(SettingError, match="has no limit: set max_steps"):
        recipes.override(recipes.named("quick"), ["max_seconds=none", "max_epochs=none"])


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("name", sorted(recipes.RECIPES))
@pytest.mark.parametrize("context", ["auto", "packed", "floor", "full", "trimmed"])
def test_a_context_is_taken_without_another_setting_being_undone(name: str, context: str, published: bool) -> None:
    recipe = recipes.named(name, published=published)
    assert recipes.override(recipe, [f"audio_context={context}"]).audio_context == context


def test_settings_that_contradict_each_other() -> None:
    with pytest.raises(SettingError, match="set ctc_weight=0 or freeze_encoder=false"):
        Recipe(max_steps=1, freeze_encoder=True, ctc_weight=0.3)


def test_a_saved_recipe_with_an_unknown_setting_is_refused() -> None:
    with pytest.raises(SettingError, match="no setting 'dropout'"):
        recipes.from_dict(recipes.named("quick").as_dict() | {"dropout": 0.1})


@pytest.mark.parametrize(
    ("hours", "parameters", "name"),
    [
        (0.01, 1_600_000, "quick"),
        (100, 1_600_000, "thorough"),
        (0.5, 244_000_000, "careful"),
        (50, 244_000_000, "full"),
    ],
)
def test_choice_follows_model_and_data(hours: float, parameters: int, name: str) -> None:
    assert recipes.choose(train_seconds=hours * 3600, parameters=parameters).name == name


def test_the_choice_gives_its_reason() -> None:
    why = recipes.choose(train_seconds=90, parameters=1_660_000).why
    assert why == (
        "the model has 1.7 M parameters (less than 100 M) and the train split has 1.5 min of speech (less than 1 h)"
    )


class TestCommands:
    def test_the_list_says_what_each_is_for(self) -> None:
        result = CliRunner().invoke(app, ["recipe", "list", "--json"])
        assert {row["name"] for row in json.loads(result.output)} == set(recipes.RECIPES) == set(recipes.SUITS)
        assert all(name in CliRunner().invoke(app, ["recipe", "list"]).output for name in recipes.RECIPES)

    def test_every_setting_is_shown_with_its_meaning(self) -> None:
        shown = json.loads(CliRunner().invoke(app, ["recipe", "show", "quick", "--json"]).output)
        rows = {row["setting"]: row for row in shown["settings"]}
        assert set(rows) == {f.name for f in fields(Recipe)} - recipes.FIXED
        assert all(len(row["meaning"]) > 10 for row in rows.values())
        assert rows["max_seconds"] == rows["max_seconds"] | {"value": 60.0, "default": None, "differs": True}
        assert not rows["clip_norm"]["differs"]

    def test_overrides_are_shown_and_wrong_names_refused(self) -> None:
        shown = CliRunner().invoke(app, ["recipe", "show", "full", "--set", "learning_rate=2e-5"]).output
        assert next(line for line in shown.splitlines() if line.startswith("learning_rate")).split()[1] == "2e-05"
        wrong = CliRunner().invoke(app, ["recipe", "show", "quik"])
        assert wrong.exit_code != 0
        assert "did you mean quick" in wrong.stderr
        assert (
            "did you mean learning_rate"
            in CliRunner().invoke(app, ["recipe", "show", "quick", "--set", "lerning_rate=1"]).stderr
        )


class TestForms:
    def test_every_setting_has_one_place_and_a_kind(self) -> None:
        shown = recipes.described(recipes.named("quick"))
        placed = [name for names in recipes.SECTIONS.values() for name in names]
        assert sorted(placed) == sorted(one.setting for one in shown)
        kinds = {one.setting: (one.kind, one.optional) for one in shown}
        assert kinds["precision"] == ("choice", False)
        assert kinds["freeze_encoder"] == ("yes or no", False)
        assert kinds["max_steps"] == ("whole number", True)
        assert kinds["speed"] == ("number", False)
        assert kinds["noise_folder"] == ("text", True)
        assert kinds["lora_targets"] == ("list", False)

    @pytest.mark.parametrize("name", sorted(recipes.BOUNDS))
    def test_limits_that_are_told_are_those_that_hold(self, name: str) -> None:
        bounds = recipes.BOUNDS[name]
        recipe = recipes.named("quick")
        for end, excluded, beyond in ((bounds.least, bounds.above, -1), (bounds.most, bounds.below, 1)):
            if end is None:
                continue
            for value, allowed in ((end, not excluded), (end + beyond, False)):
                if allowed:
                    assert getattr(recipes.override(recipe, [f"{name}={value:g}"]), name) == value
                else:
                    with pytest.raises(SettingError, match=name):
                        recipes.override(recipe, [f"{name}={value:g}"])

    def test_what_is_no_number_lies_within_no_limits(self) -> None:
        with pytest.raises(SettingError, match="learning_rate"):
            recipes.override(recipes.named("quick"), ["learning_rate=nan"])
