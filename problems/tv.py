"""Total-variation denoising of a stack of images with a learned weight and smoothing.

    h(x, theta) = sum over images of 1/2 ||x - y||^2 + w sum_pixels [sqrt(dx^2 + nu^2) + sqrt(dy^2 + nu^2)]
    g(x) = 1/n sum over images of 1/2 ||x - x_clean||^2,        w = 1/2 e^{theta_0},  nu = e^{theta_1}

D x = (dx, dy): forward differences, zero at the last column and row. Isotropic: sqrt(dx^2 + dy^2 + nu^2) instead of
the sum of two roots. Elastic: 1/2 e^{theta_2} ||x||^2 more. Section 4.2 of arXiv 2308.10098.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from bilevel.problem import AbstractProblem, Bounds, Constants

Images = Float[Array, "n height width"]
Scalar = Float[Array, ""]

C3 = 48 / (25 * 5**0.5)  # max |psi'''| nu^2 of psi(d) = sqrt(d^2 + nu^2), at d = nu/2


class TotalVariation(AbstractProblem):
    """`TotalVariation(clean, noisy, isotropic=False, elastic=False)`; theta: log weight, log smoothing[, log elastic].

    **Arguments**

    - `clean`: (n, height, width), float32 or float64 in [0, 1]; None to denoise only (then `upper` raises).
    - `noisy`: the same shape and dtype, finite, about [0, 1] plus noise.
    - `isotropic`: one root per pixel for both differences. - `elastic`: adds 1/2 e^{theta_2} ||x||^2.

    theta has shape (2,), or (3,) with `elastic`; x the shape of `noisy`.

    **Raises** TypeError for dtypes, ValueError for shapes and values; the message says what to write instead. A JAX
    array keeps its sharding, so a stack split over its first axis stays split.
    """

    clean: Images | None
    noisy: Images
    isotropic: bool
    elastic: bool

    def __init__(self, clean: Any, noisy: Any, *, isotropic: bool = False, elastic: bool = False):
        self.noisy = _checked("noisy", noisy, -9, 10)
        self.clean = None if clean is None else _checked("clean", clean, 0, 1)
        self.isotropic = isotropic
        self.elastic = elastic
        if self.clean is not None and self.clean.shape != self.noisy.shape:
            raise ValueError(f"clean has shape {self.clean.shape}, noisy {self.noisy.shape}; pass stacks of one shape.")
        if self.clean is not None and self.clean.dtype != self.noisy.dtype:
            raise TypeError(
                f"clean is {self.clean.dtype}, noisy {self.noisy.dtype}; pass one dtype, as in "
                f"noisy.astype(clean.dtype)."
            )

    def lower(self, x: Images, theta: Float[Array, "..."]) -> Scalar:
        """h(x, theta). Raises ValueError if theta has the wrong shape."""
        w, nu, e = self._weights(theta)
        h = jnp.sum((x - self.noisy) ** 2) / 2 + w * variation(x, nu, self.isotropic)
        return h + e / 2 * jnp.sum(x**2) if self.elastic else h

    def upper(self, x: Images, theta: Float[Array, "..."]) -> Scalar:
        """g(x) = 1/n sum 1/2 ||x - clean||^2. Raises ValueError without clean images."""
        if self.clean is None:
            raise ValueError("No clean images to compare with: pass them, TotalVariation(clean, noisy).")
        return jnp.sum((x - self.clean) ** 2) / (2 * len(self.clean))

    def guess(self, theta: Float[Array, "..."]) -> Images:
        """The noisy images."""
        return self.noisy

    def constants(self, theta: Float[Array, "..."]) -> Constants:
        """All proven: ||D||^2 <= 8, psi'' <= 1/nu, |psi'''| <= c3/nu^2 (isotropic: the same, as norms on R^2; restricted
        to a line, sqrt(|d|^2 + nu^2) is a psi with a nu at least as large, and a symmetric form's norm is taken on
        its diagonal).

            mu = 1 + e,   L = 1 + 8 w/nu + e,   L_H = 16/sqrt(5) c3 w/nu^2 (isotropic: sqrt(2) times),
            L_J = 8 w/nu for each of the columns 0 and 1, e for column 2, added in squares;   e = e^{theta_2} or 0.
        """
        w, nu, e = self._weights(theta)
        # L_H: |D^3 h(x)[z, z, z]| <= c3 w/nu^2 F(z), F(z) = sum |Dz|^3 over edges. At F's maximum on ||z|| = 1,
        # D^T(|Dz| Dz) = F z; read where z = a > 0 is largest in size, with neighbours b_1..b_4:
        # F a <= sum (a + |b_i|)^2 <= 4 (a + b)^2 with 4 b^2 = sum b_i^2, b <= a and a^2 + 4 b^2 <= 1, largest at
        # a = b = 1/sqrt(5). Isotropic: (s^2 + t^2)^{3/2} <= sqrt(2) (s^3 + t^3).
        L_H = 16 / 5**0.5 * (2**0.5 if self.isotropic else 1.0) * C3 * w / nu**2
        one = jnp.ones_like(w)
        return Constants(
            mu=one + e,
            L=one + 8 * w / nu + e,
            L_upper=one / len(self.noisy),
            L_upper_theta=0 * one,
            L_hessian=L_H,
            L_cross=jnp.sqrt(2 * (8 * w / nu) ** 2 + e**2),
            convex_upper=True,
        )

    def bounds(self, x: Images, theta: Float[Array, "..."], q: Images, radius: Scalar) -> Bounds:
        """Valid on every ball, whatever its radius:

        M_H = min(L_H max_i ||q_i||, 8 c3 w/nu^2 max |Dq|)      (H is block diagonal over the images i)
        M_J^2 = (4 w/nu ||Dq||)^2 + (e ||q||)^2
        ||J(x)||^2 = lambda_max of the Gram matrix of w D^T psi'(Dx), w nu D^T dpsi'/dnu (Dx), e x.
        """
        w, nu, e = self._weights(theta)
        constants = self.constants(theta)
        # Isotropic: a pixel's |Dq|^2 adds both differences, and so does every bound below.
        qx, qy = differences(q)
        squares = qx**2 + qy**2
        largest = jnp.sqrt(jnp.max(squares if self.isotropic else jnp.maximum(qx**2, qy**2)))
        norm_q = jnp.sqrt(jnp.max(jnp.sum(q**2, axis=(1, 2))))
        # M_J: along a path the two entries of (J^T q)' are sums of psi'' Dq Dz and -phi' Dq Dz with psi'' and |phi'|,
        # phi = d nu^2/s^3, at most 1/nu (isotropic: the eigenvalues of both Jacobians, which share their eigenvectors
        # d and its normal). So M_J <= sqrt(2) w/nu ||Dq|| ||D|| = 4 w/nu ||Dq||, never above sqrt(2) 8 w/nu ||q||.
        M_J = jnp.sqrt((4 * w / nu) ** 2 * jnp.sum(squares) + e**2 * jnp.sum(q**2))

        sx, sy = inverse_roots(*(d := differences(x)), nu, self.isotropic)
        columns = [
            w * adjoint_differences(d[0] * sx, d[1] * sy),
            -w * nu**2 * adjoint_differences(d[0] * sx**3, d[1] * sy**3),
        ]
        J = jnp.stack(columns + [e * x] if self.elastic else columns)
        gram = jnp.einsum("inhw,jnhw->ij", J, J, precision=jax.lax.Precision.HIGHEST)
        return Bounds(
            J=jnp.sqrt(jnp.linalg.eigvalsh(gram)[-1]),
            M_H=jnp.minimum(constants.L_hessian * norm_q, 8 * C3 * w / nu**2 * largest),
            M_J=M_J,
            L_J=constants.L_cross,
        )

    def denoise(self, theta: Float[Array, "..."], noisy: Any, eps: float | None = None) -> Any:
        """Denoise other images, (n, height, width), with the same options: what `bilevel.solve_lower` returns, with
        the images in `.x` and a bound on their distance to the minimiser in `.error`.

        `eps`: that distance; default a root-mean-square error of 1e-3 per pixel, 1e-3 sqrt(noisy.size).
        """
        from bilevel import solve_lower

        problem = TotalVariation(None, noisy, isotropic=self.isotropic, elastic=self.elastic)
        return solve_lower(problem, theta, eps=1e-3 * problem.noisy.size**0.5 if eps is None else eps)

    def _weights(self, theta):
        """w, nu, e."""
        shape, names = (
            ((3,), "log weight, log smoothing, log elastic") if self.elastic else ((2,), "log weight, log smoothing")
        )
        if jnp.shape(theta) != shape:
            raise ValueError(f"theta must have shape {shape}: {names}; it has shape {jnp.shape(theta)}.")
        w, nu = jnp.exp(theta[0]) / 2, jnp.exp(theta[1])
        return w, nu, jnp.exp(theta[2]) if self.elastic else jnp.zeros_like(w)


def differences(x: Images) -> tuple[Images, Images]:
    """D x = (dx, dy), forward, zero at the last column of dx and the last row of dy."""
    dx = jnp.pad(x[:, :, 1:] - x[:, :, :-1], ((0, 0), (0, 0), (0, 1)))
    dy = jnp.pad(x[:, 1:, :] - x[:, :-1, :], ((0, 0), (0, 1), (0, 0)))
    return dx, dy


def adjoint_differences(px: Images, py: Images) -> Images:
    """D^T p, for p that is zero where D x is."""
    return jnp.pad(px[:, :, :-1], ((0, 0), (0, 0), (1, 0))) - px + jnp.pad(py[:, :-1, :], ((0, 0), (1, 0), (0, 0))) - py


def inverse_roots(dx: Images, dy: Images, nu: Scalar, isotropic: bool) -> tuple[Images, Images]:
    """1/s for both directions, s = sqrt(d^2 + nu^2)."""
    if isotropic:
        r = 1 / jnp.sqrt(dx**2 + dy**2 + nu**2)
        return r, r
    return 1 / jnp.sqrt(dx**2 + nu**2), 1 / jnp.sqrt(dy**2 + nu**2)


def variation(x: Images, nu: Scalar, isotropic: bool) -> Scalar:
    """sum_pixels sqrt(dx^2 + nu^2) + sqrt(dy^2 + nu^2)."""
    dx, dy = differences(x)
    if isotropic:
        return jnp.sum(jnp.sqrt(dx**2 + dy**2 + nu**2))
    return jnp.sum(jnp.sqrt(dx**2 + nu**2) + jnp.sqrt(dy**2 + nu**2))


def _checked(name: str, images: Any, low: float, high: float) -> Array:
    """The images as a JAX array, or an error that says what to write instead."""
    if not isinstance(images, jax.Array):
        images = np.asarray(images)
    dtype = images.dtype
    if np.issubdtype(dtype, np.integer) or dtype == bool:
        raise TypeError(f"{name} holds {dtype}; divide by 255: images.astype(float) / 255.")
    if dtype not in (np.float32, np.float64):
        raise TypeError(f"{name} holds {dtype}; pass float32 or float64.")
    if dtype == np.float64 and not jax.config.jax_enable_x64:
        raise TypeError(
            f'{name} is float64 but JAX runs in 32 bits: call jax.config.update("jax_enable_x64", True) before any '
            f"other use of JAX, or pass {name}.astype(np.float32)."
        )
    if images.ndim != 3:
        hint = "; pass images[None] for one image" if images.ndim == 2 else ""
        raise ValueError(f"{name} must have shape (n, height, width), not {images.shape}{hint}.")
    n, height, width = images.shape
    if n == 0:
        raise ValueError(f"{name} is an empty stack, {images.shape}; pass at least one image.")
    if height < 2 or width < 2:
        raise ValueError(f"{name} has images of {height} x {width}; height and width must be at least 2.")
    images = jnp.asarray(images)
    if isinstance(images, jax.core.Tracer):
        return images  # inside jit there are no values to check
    smallest, largest = float(jnp.min(images)), float(jnp.max(images))
    if not (np.isfinite(smallest) and np.isfinite(largest)):
        raise ValueError(f"{name} holds NaN or infinity; replace or drop those images.")
    if smallest < low or largest > high:
        raise ValueError(
            f"{name} lies in [{smallest:.3g}, {largest:.3g}], expected within [{low}, {high}]: intensities are in "
            f"[0, 1]. Divide 0..255 by 255, and clip clean images: images.clip(0, 1)."
        )
    return images
