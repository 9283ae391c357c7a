"""Four fake devices, 64-bit floats, no silent broadcasting: set before JAX starts, for every test.

One compilation cache a run, new and shared by its processes: nothing stale or foreign decides a test. Optimisations
are left out, more than half of compiling; `make test-full` has them.
"""

import importlib.metadata
import os
import shutil
import tempfile

os.environ.setdefault("MPLBACKEND", "Agg")  # figures without a screen
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
FLAGS = ["--xla_force_host_platform_device_count=4"]
# Flags of XLA's own come and go, and one that it does not know ends the process: these are of the pinned version.
if os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1" and importlib.metadata.version("jaxlib").startswith("0.10."):
    FLAGS += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
# Appended, so that a caller's own flags hold too; XLA reads the variable once, when its first backend starts.
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS]).strip()

import jax  # noqa: E402
import pytest  # noqa: E402

# The first process of a run makes the cache, the others inherit its name.
OURS = "BILEVEL_TESTS_CACHE" not in os.environ
CACHE = os.environ.setdefault("BILEVEL_TESTS_CACHE", tempfile.mkdtemp(prefix="bilevel-tests-") if OURS else "")

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", CACHE)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def pytest_sessionfinish():
    if OURS:
        shutil.rmtree(CACHE, ignore_errors=True)


@pytest.fixture
def optimised():
    """Programs as users have them, for a test that stands on their last digits."""
    flag = "jax_disable_most_optimizations"
    before = jax.config.values[flag]
    jax.config.update(flag, False)
    jax.clear_caches()
    yield
    jax.config.update(flag, before)
    jax.clear_caches()


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """What one file compiled few others need, and it is mapped memory: the kernel allows 65 530 maps a process, and
    LLVM crashes at the next one."""
    yield
    jax.clear_caches()


# What takes longest, and has others beside it that ask for nearly the same: in `make test-full`.
LONG = (
    "test_stn_tune.py::test_a_resumed_run_is_the_uninterrupted_one",
    "test_estimators.py::test_one_penalty_is_that_of_ridge_cv[diabetes]",
    "test_estimators.py::test_a_budget_that_ends_is_a_warning",
    "test_restoration.py::test_no_certificate_is_violated[case1]",
    "test_restoration.py::test_learning[inpainting]",
    "test_penalty.py::test_descent_converges_without_a_hessian_product[TV-False]",
    "test_penalty.py::test_no_bound_is_violated[draw1-dense-1-40]",
    "test_reweighted.py::test_wrong_labels_are_found",
    "test_stn_misuse.py::test_a_loss_that_is_no_mean_needs_draws_for_the_batch[class weights]",
    "test_stn_misuse.py::test_a_loss_that_is_no_mean_needs_draws_for_the_batch[root]",
    "test_stn_misuse.py::test_a_penalty_over_leaves_is_refused_and_right_over_the_effective_model[materialise]",
    "test_sure.py::test_what_it_learns_is_nearly_as_good_as_with_clean_images",
    "test_attack.py::test_no_certificate_is_violated[TV isotropic elastic: float32, LBFGS]",
    "test_undeclared.py::test_a_smoothed_lasso_ends_where_scipy_does[1e-06]",
    "test_goal_oriented.py::test_the_estimate_is_the_error_to_a_few_per_cent[logistic]",
    "test_goal_oriented.py::test_the_estimate_is_the_error_to_a_few_per_cent[tv isotropic elastic]",
    "test_descent.py::test_max_cost_is_never_exceeded_and_the_last_accepted_point_returned[method0]",
    "test_check.py::test_a_metric_that_is_too_heavy_is_caught",
    "test_check.py::test_a_second_derivative_that_jumps_has_no_lipschitz_constant",
    "test_docs.py::test_a_page_runs_with_few_steps_and_prints_its_table[extend_operator]",
    "test_docs.py::test_a_page_runs_with_few_steps_and_prints_its_table[extend_regulariser]",
    "test_docs.py::test_a_page_runs_with_few_steps_and_prints_its_table[extend_hyperparameter]",
    "test_foe.py::test_filters_less_their_means_keep_the_bounds[valid]",
    "test_foe.py::test_no_certificate_is_violated[all, even, reflect]",
    "test_foe.py::test_no_certificate_is_violated[logs]",
    "test_front_door.py::test_the_default_is_as_good_as_scipy_or_says_that_it_is_not_there[TV from (-2, -6)]",
    "test_linear_models.py::test_folds_are_the_mean_of_separate_problems[multinomial]",
    "test_denoiser.py::test_fit",
    "test_certificates.py::test_estimates_say_so_and_mostly_hold[random_robust-declared1-300]",
    "test_certificates.py::test_no_bound_is_violated[random_robust-float64-solver5-500-dense]",
    "test_quasi_newton.py::test_the_corrected_interval_holds_for_any_q[problem1-tv_truth-theta1-solved]",
    "test_logistic.py::test_no_bound_is_violated[(4, 3)]",
    "test_logistic.py::test_no_bound_is_violated[(1, 3)]",
    "test_truth.py::test_bounds_follow_the_curvature_that_is_there[square]",
    "test_truth.py::test_a_budget_is_kept_by_the_parts[neither]",
    "test_hypergradient.py::test_hypergradient_counts_real_calls[mu-Nesterov]",
    "test_tv.py::test_lipschitz_constants_hold_against_a_search[isotropic+elastic]",
    "test_sharding.py::test_solve_on_a_mesh_equals_solve_on_one_device[maid]",
    "test_stn_tune.py::test_a_second_run_compiles_nothing",
    "test_stn_tune.py::test_a_schedule_is_saved_and_replayed",
    "test_stn_tune.py::test_a_diverging_run_ends_with_its_last_good_epoch",
    "test_estimators.py::test_penalties_of_every_kind",
    "test_self_tuning.py::test_a_box_is_never_left",
    "test_self_tuning.py::test_resume_equals_uninterrupted",
    "test_readme.py::test_an_example[imaging]",
    "test_readme.py::test_an_example[kinks]",
    "test_restoration.py::test_no_certificate_is_violated[case2]",
    "test_restoration.py::test_learning[deblurring]",
    "test_restoration.py::test_derivatives_are_those_of_differences[identity-ridge]",
    "test_undeclared.py::test_no_interval_that_is_told_misses_the_truth[10-Nesterov]",
    "test_penalty.py::test_descent_converges_without_a_hessian_product[quadratic-False]",
    "test_stn_tune.py::test_what_cannot_be_tuned_says_why[options2-ValueError-does not depend]",
    "test_undeclared.py::test_no_interval_that_is_told_misses_the_truth[32-Nesterov]",
    "test_linear_models.py::test_no_bound_is_violated[gaussian-(4, 1)-True0]",
    "test_logistic.py::test_digits_are_learnt",
    "test_descent.py::test_max_cost_is_kept_where_constants_are_estimated_too",
    "test_linear_models.py::test_no_bound_is_violated[gaussian-(1, 1)-more]",
    "test_linear_models.py::test_no_bound_is_violated[poisson-(4, 1)-more]",
    "test_logistic.py::test_no_bound_is_violated_with_more_features_than_rows",
    "test_stn_misuse.py::test_hyperparameters_move_whatever_the_weights_are[float16]",
    "test_stn_misuse.py::test_hyperparameters_move_whatever_the_weights_are[float32]",
    "test_stn_misuse.py::test_a_penalty_over_leaves_is_refused_and_right_over_the_effective_model[optax]",
    "test_sparse.py::test_sparse_is_dense[gaussian]",
    "test_reweighted.py::test_no_bound_is_violated[poisson-5_0]",
    "test_quasi_newton.py::test_it_needs_far_fewer_steps_than_steepest_descent",
    "test_descent.py::test_max_cost_is_never_exceeded_and_the_last_accepted_point_returned[method3]",
    "test_precision.py::test_the_certificate_holds_above_and_below_the_floor_of_float32[robust-declared2-Mixed",
    "test_attack.py::test_no_certificate_is_violated[descents, least squares, small g, box]",
    "test_certificates.py::test_no_bound_is_violated[draw3-float64-solver3-200-dense]",
    "test_stn_tune.py::test_digits[stn]",
    "test_certificates.py::test_no_bound_is_violated[random_quadratic-float32-solver2-2400-closed_form]",
    "test_restoration.py::test_derivatives_are_those_of_differences[identity-weak ridge]",
    "test_stn_tune.py::test_who_shares_a_draw[example-1]",
    "test_logistic.py::test_no_bound_is_violated[(4, 1)]",
    "test_attack.py::test_no_certificate_is_violated[logistic at mean 100: a penalty a feature: float32, LBFGS]",
    "test_hypergradient.py::test_hypergradient_counts_real_calls[mu-NewtonCG]",
    "test_goal_oriented.py::test_the_estimate_is_the_error_to_a_few_per_cent[nested]",
    "test_checkpoint.py::test_resume_with_larger_budgets_equals_the_long_run[maid-longer2]",
    "test_readme.py::test_an_example[networks]",
    "test_readme.py::test_an_example[devices]",
    "test_stn_runs.py::test_a_loader_trains_on_every_example_and_is_judged_on_every_one",
    "test_goal_oriented.py::test_an_ill_conditioned_quadratic_of_many_dimensions",
    "test_hypergradient.py::test_hypergradient_counts_real_calls[nothing-Nesterov]",
    "test_chunked.py::test_a_run_is_that_of_the_whole",
    "test_chunked.py::test_what_is_not_kept_is_computed_anew",
    "test_chunked.py::test_a_resumed_run_is_the_long_one[True]",
    "test_chunked.py::test_methods_with_adjoint_gradients_take_it",
    "test_stn_runs.py::test_an_optimiser_may_watch_the_loss",
    "test_self_tuning.py::test_pytrees",
    "test_self_tuning.py::test_without_a_certificate_nothing_is_claimed",
    "test_reweighted.py::test_no_bound_is_violated[multinomial-0_0]",
    "test_stn_misuse.py::test_a_recipe_by_isinstance_is_right_as_it_is",
    "test_certificates.py::test_bounds_shrink_like_eps[draw0-400]",
    "test_certificates.py::test_bounds_shrink_like_eps[draw2-200]",
    "test_penalty.py::test_the_rate_in_t[1-1]",
    "test_stn_tune.py::test_what_cannot_be_tuned_says_why[options5-ValueError-valid_loss is nan]",
    "test_quasi_newton.py::test_the_corrected_interval_holds_for_any_q[problem1-tv_truth-theta1-zero]",
    "test_sharding.py::test_hypergradient_on_a_mesh_equals_that_on_one_device",
    "test_float32.py::test_no_claim_is_wrong_and_no_run_endless[0-quadratic]",
    "test_float32.py::test_no_claim_is_wrong_and_no_run_endless[2-quadratic]",
    "test_foe.py::test_constants_hold_against_adversarial_points[all, reflect]",
    "test_foe.py::test_derivatives_are_those_of_a_convolution[weights, smoothings]",
    "test_problems.py::test_the_gradient_is_as_accurate_as_declared[logistic]",
    "test_descent.py::test_theta_and_x_may_be_pytrees[True]",
    "test_descent.py::test_max_cost_is_never_exceeded_and_the_last_accepted_point_returned[method1]",
    "test_stn_models.py::test_a_model_agrees_with_itself_materialised[ensemble]",
    "test_stn_models.py::test_a_model_agrees_with_itself_materialised[tuple]",
    "test_linear_models.py::test_folds_are_the_mean_of_separate_problems[binomial]",
    "test_front_door.py::test_the_default_is_as_good_as_scipy_or_says_that_it_is_not_there[wine, scaled, 1]",
    "test_goal_oriented.py::test_the_estimate_is_the_error_to_a_few_per_cent[robust]",
    "test_readme.py::test_an_example[statistics]",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if item.nodeid.rpartition("/")[2].startswith(LONG):
            item.add_marker(pytest.mark.full)
