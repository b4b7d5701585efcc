"""The derivations of five handwritten notes, each a small function; `derivations.py` holds them against the truth.

Batch norm, for x with one row per sample (m of them) and one column per feature; every sum is over the samples:

    mean = sum(x) / m    x' = x - mean    var = sum(x'^2) / (m - ddof)    r = (var + epsilon)^(-1/2)                 (1)
    x_hat = x' r         y = x_hat scale + bias                                                                      (2)

Its backward pass, for the incoming cotangent g, is derived three ways: node by node along the graph, as a sum over the
three ways from x to x_hat, and multiplied out. They are one rule, (4) of `jaxnorm.normalization`. Most mistakes of a
note are the sum over the ways with one term replaced by what the note has.

Here dv is the cotangent of v, and "u by v" the partial derivative of u by v. A number such as 2.3 is the third formula
of the second note on the page that walks through them, docs/derivations/notes.md; there they are in the notes' letters.

The notes are scans, and some formulas suffered; what was made of them is said where they are used. Of the first note's
forward pass and of its sums for scale and bias hardly a sign is right: (1), (2) and the other notes' sums are taken.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

EPSILON = 0.1  # large, so that a formula that forgets it is seen


# --- batch norm: the forward pass and its graph ---------------------------------------------------------------------


class Nodes(NamedTuple):
    """A value, or a cotangent, for each inner node of the graph of (1) and (2)."""

    x_hat: Any
    var: Any
    centred: Any  # x'
    mean: Any


NO_TAPS = Nodes(0.0, 0.0, 0.0, 0.0)


def standardized(x, ddof=0) -> tuple[Nodes, jax.Array]:
    """The nodes of (1) and (2), and r."""
    mean = x.mean(0)
    centred = x - mean
    var = (centred**2).sum(0) / (len(x) - ddof)
    rstd = (var + EPSILON) ** -0.5
    return Nodes(centred * rstd, var, centred, mean), rstd


def plain_batch_norm(x, scale, bias, ddof=0, taps=NO_TAPS) -> jax.Array:
    """(1) and (2) for `jax.vjp`; a zero added at each node (a tap) has that node's cotangent for its own."""
    mean = x.mean(0) + taps.mean
    centred = x - mean + taps.centred
    var = (centred**2).sum(0) / (len(x) - ddof) + taps.var
    x_hat = centred * (var + EPSILON) ** -0.5 + taps.x_hat
    return x_hat * scale + bias


# --- batch norm backwards: node by node, by three ways, in closed form ----------------------------------------------


def dvar_sample_by_sample(x, scale, g) -> jax.Array:
    """First note: var is the same for every sample, so what each sends back is added up.

        dvar = sum(g scale (x - mean) (-1/2) (var + epsilon)^(-3/2))                                               (1.4)

    The scan puts the exponent -3/2 on a square root, and once a 2; corrected to one on var + epsilon itself.
    """
    nodes, rstd = standardized(x)
    return (g * scale * nodes.centred * -0.5 * rstd**3).sum(0)


def node_by_node(x, scale, g) -> tuple[Nodes, jax.Array]:
    """Second note: the graph from its end, a broadcast's cotangent summed, two arrows into a node added.

        dx_hat = g scale                                                                                           (2.1)
        dvar = sum(dx_hat (-1/2) x_hat / (var + epsilon))                                                          (2.2)
        dx' = dx_hat r + dvar 2 x' / m                                                                             (2.3)
        dmean = -sum(dx')                                                                                          (2.4)
        dx = dx' + dmean / m                                                                                       (2.5)

    The scan lost the right-hand side of (2.3); the rest of the note leaves no other.
    """
    nodes, rstd = standardized(x)
    m = len(x)
    dx_hat = g * scale  # (2.1)
    dvar = (dx_hat * -0.5 * nodes.x_hat / (nodes.var + EPSILON)).sum(0)  # (2.2)
    dcentred = dx_hat * rstd + dvar * 2 * nodes.centred / m  # (2.3)
    dmean = -dcentred.sum(0)  # (2.4)
    return Nodes(dx_hat, dvar, dcentred, dmean), dcentred + dmean / m  # (2.5)


class Ways(NamedTuple):
    """What the sum over the three ways from x to x_hat is made of, beside r: directly, by mean and by var."""

    dvar: jax.Array
    x_hat_by_mean: jax.Array  # the partial derivative of x_hat by mean
    dmean_through_var: jax.Array  # what mean receives through var
    var_by_x: jax.Array  # the partial derivative of var by x


def ways(x, dx_hat, ddof=0) -> Ways:
    """Third and fifth notes: the partial derivatives.

        dvar = sum(dx_hat x') (-1/2) (var + epsilon)^(-3/2)                                                   (3.4, 5.4)
        x_hat by mean = -r                                                                                    (3.7, 5.1)
        var by mean = -2 sum(x') / (m - ddof) = 0                                                             (3.6, 5.2)
        var by x = 2 x' / (m - ddof)                                                                         (3.8, 5.13)

    Mean through var is nothing: the deviations from a mean add up to 0.
    """
    nodes, rstd = standardized(x, ddof)
    n = len(x) - ddof
    dvar = (dx_hat * nodes.centred).sum(0) * -0.5 * rstd**3
    return Ways(dvar, -rstd, dvar * -2 * nodes.centred.sum(0) / n, 2 * nodes.centred / n)


def along(x, dx_hat, terms: Ways, ddof=0) -> jax.Array:
    """Third and fifth notes: the three ways added.

    dx = dx_hat r + dmean / m + dvar (var by x)                                                              (3.8, 5.11)
    dmean = sum(dx_hat (x_hat by mean)) + dvar (var by mean)                                                  (3.7, 5.6)
    """
    _, rstd = standardized(x, ddof)
    dmean = (dx_hat * terms.x_hat_by_mean).sum(0) + terms.dmean_through_var
    return dx_hat * rstd + dmean / len(x) + terms.dvar * terms.var_by_x


def by_three_ways(x, scale, g, ddof=0) -> jax.Array:
    """Fifth note, and with ddof = 1 the third: (5.11) with every term, the one that is 0 among them."""
    return along(x, g * scale, ways(x, g * scale, ddof), ddof)


def closed_form(x, scale, g) -> jax.Array:
    """Fifth note: (5.11) multiplied out, with (var + epsilon)^(-3/2) = r r r shared between the two x_hat.

    dx = (r / m) (m dx_hat - sum(dx_hat) - x_hat sum(dx_hat x_hat))                                               (5.17)
    """
    nodes, rstd = standardized(x)
    dx_hat = g * scale
    return rstd / len(x) * (len(x) * dx_hat - dx_hat.sum(0) - nodes.x_hat * (dx_hat * nodes.x_hat).sum(0))


def closed_form_bessel(x, scale, g) -> jax.Array:
    """Third note: the variance divided by m - 1.

    dx = (scale r / m) (m g - sum(g) - m / (m - 1) x_hat sum(g x_hat))                                            (3.10)
    """
    nodes, rstd = standardized(x, ddof=1)
    m = len(x)
    return scale * rstd / m * (m * g - g.sum(0) - m / (m - 1) * nodes.x_hat * (g * nodes.x_hat).sum(0))


def by_standard_deviation(x, scale, g) -> jax.Array:
    """Fourth note: sigma = (var + epsilon)^(1/2) for the node, in place of var.

    mean by x = 1 / m              sigma by x = x' / (m sigma)                                                     (4.6)
    x_hat by mean = -1 / sigma     x_hat by sigma = -x' / sigma^2                                                  (4.7)
    """
    nodes, rstd = standardized(x)
    sigma, m, dx_hat = 1 / rstd, len(x), g * scale
    dsigma = (dx_hat * -nodes.centred / sigma**2).sum(0)
    return dx_hat / sigma - (dx_hat / sigma).sum(0) / m + dsigma * nodes.centred / (m * sigma)


def own_derivative(x) -> jax.Array:
    """Fourth note: by (4.7), how each x_hat moves with its own x, the diagonal of the Jacobian.

        x_hat_i by x_i = (m - 1) / (m sigma) - x'_i^2 / (m sigma^3)                                                (4.8)

    The note breaks off here, its second term an empty bracket and a fragment.
    """
    nodes, rstd = standardized(x)
    m = len(x)
    return (m - 1) / m * rstd - nodes.centred**2 / m * rstd**3


def by_quotient_rule(x, scale, g) -> jax.Array:
    """The fifth note's quotient rule with the sum kept, sigma by mean = -sum(x') / (m sigma) = 0: it works (5.10)."""
    nodes, rstd = standardized(x)
    sigma, dx_hat = 1 / rstd, g * scale
    slope = -nodes.centred.sum(0) / (len(x) * sigma)
    quotient = (-sigma - nodes.centred * slope) / sigma**2
    return along(x, dx_hat, ways(x, dx_hat)._replace(x_hat_by_mean=quotient))


# --- batch norm: the mistakes ---------------------------------------------------------------------------------------
# Whether one was made by hand or in the scan often cannot be told: each is the formula as it stands in the scan.


def dvar_with_exponent_on_a_root(x, scale, g) -> jax.Array:
    """First note: (1.4) with its exponent -3/2 on the square root of var + epsilon."""
    nodes, rstd = standardized(x)
    return (g * scale * nodes.centred * -0.5 * rstd ** (3 / 2)).sum(0)


def square_without_sum(x) -> jax.Array:
    """Fourth note, its last line: sigma^2 = x'^2 / m, a number for each sample."""
    nodes, _ = standardized(x)
    return nodes.centred**2 / len(x)


def quotient_rule_without_sum(x, scale, g) -> jax.Array:
    """Fifth note, doubted there: x_hat by mean as a quotient, with sigma by mean = (mean - x_i) / (m sigma), no sum.

    The scan's "M - x_i" is read as mean - x_i, which follows from the line before it.
    """
    nodes, rstd = standardized(x)
    sigma, dx_hat = 1 / rstd, g * scale
    slope = (nodes.mean - x) / (sigma * len(x))
    quotient = (-sigma - (x - nodes.mean) * slope) / sigma**2
    return along(x, dx_hat, ways(x, dx_hat)._replace(x_hat_by_mean=quotient))


def quotient_rule_last_line(x, scale, g) -> jax.Array:
    """Fifth note, doubted there: how that ends, x_hat by mean = (-sigma^2 - (mean - x_i) (x_i - mean)) / sigma^2."""
    nodes, rstd = standardized(x)
    sigma, dx_hat = 1 / rstd, g * scale
    quotient = (-(sigma**2) - (nodes.mean - x) * (x - nodes.mean)) / sigma**2
    return along(x, dx_hat, ways(x, dx_hat)._replace(x_hat_by_mean=quotient))


def var_by_x_with_extra_factor(x, scale, g) -> jax.Array:
    """Fifth note, doubted there: var by x = (1/m) 2 x' (-1) (1/m)."""
    dx_hat, m = g * scale, len(x)
    nodes, _ = standardized(x)
    return along(x, dx_hat, ways(x, dx_hat)._replace(var_by_x=1 / m * 2 * nodes.centred * -1 * (1 / m)))


def mean_through_var_without_brackets(x, scale, g) -> jax.Array:
    """Fifth note: mean through var as its last line stands, dvar (-2) mean - m mean / m."""
    dx_hat, m = g * scale, len(x)
    nodes, _ = standardized(x)
    terms = ways(x, dx_hat)
    return along(x, dx_hat, terms._replace(dmean_through_var=terms.dvar * -2 * nodes.mean - m * nodes.mean / m))


def dvar_summed_too_early(x, scale, g) -> jax.Array:
    """Fifth note: x_hat by var = -(1/2) sum(x') (var + epsilon)^(-3/2), a sum by itself, and only then dx_hat."""
    dx_hat = g * scale
    nodes, rstd = standardized(x)
    dvar = (dx_hat * (-0.5 * (nodes.centred * rstd**3).sum(0))).sum(0)
    return along(x, dx_hat, ways(x, dx_hat)._replace(dvar=dvar))


def var_with_its_sign_lost(x, scale, g) -> jax.Array:
    """Fifth note: (5.4) put into (5.11) with "1/Z" for the -1/2 of dvar, read as 1/2; the next line has the sign."""
    dx_hat = g * scale
    terms = ways(x, dx_hat)
    return along(x, dx_hat, terms._replace(dvar=-terms.dvar))


def multiplied_out_without_x_hat(x, scale, g) -> jax.Array:
    """Fifth note, twice before (5.17): dx = dx_hat r - r sum(dx_hat) - sum(dx_hat x_hat) / m."""
    nodes, rstd = standardized(x)
    dx_hat = g * scale
    return dx_hat * rstd - rstd * dx_hat.sum(0) - (dx_hat * nodes.x_hat).sum(0) / len(x)


def multiplied_out_without_r(x, scale, g) -> jax.Array:
    """Fifth note, between those two: dx = dx_hat r - r sum(dx_hat) - r (x' / m) sum(dx_hat x_hat)."""
    nodes, rstd = standardized(x)
    dx_hat = g * scale
    return dx_hat * rstd - rstd * dx_hat.sum(0) - rstd * nodes.centred / len(x) * (dx_hat * nodes.x_hat).sum(0)


def mean_through_var_by_cotangent(x, scale, g) -> jax.Array:
    """Third note: mean through var is written -2 scale / (m - 1) sum(x' g), and 0 by taking g out of the sum."""
    dx_hat, m = g * scale, len(x)
    nodes, _ = standardized(x, ddof=1)
    through_var = -2 * scale / (m - 1) * (nodes.centred * g).sum(0)
    return along(x, dx_hat, ways(x, dx_hat, ddof=1)._replace(dmean_through_var=through_var), ddof=1)


def bessel_with_wrong_index(x, scale, g) -> jax.Array:
    """Third note, before its bracket: the third term has g_i, not g_j, under the sum over j."""
    nodes, rstd = standardized(x, ddof=1)
    m = len(x)
    third = scale / 2 * (nodes.centred * rstd**3).sum(0) * 2 / (m - 1) * nodes.centred * g
    return scale * rstd * g - scale * (rstd * g).sum(0) / m - third


# --- batch norm: its parameters, and the other norms ----------------------------------------------------------------


def dscale_by_diagonal(g, x_hat) -> jax.Array:
    """Second note: dscale = diag(g^T x_hat), a D x D product of which only the diagonal is wanted (2.6)."""
    return jnp.diag(g.T @ x_hat)


def dscale_by_ones(g, x_hat) -> jax.Array:
    """Second note: dscale = ones^T (g x_hat), the sum as a product with a row of ones (2.7)."""
    return jnp.ones(len(g), g.dtype) @ (g * x_hat)


def dscale_by_sum(g, x_hat) -> jax.Array:
    """Fifth note: dscale = sum(g x_hat) (5.7; the scan has lost its hat in one of two places)."""
    return (g * x_hat).sum(0)


VECTORISATIONS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "diag(g^T x_hat)": dscale_by_diagonal,
    "ones^T (g x_hat)": dscale_by_ones,
    "sum(g x_hat)": dscale_by_sum,
}


def as_batch_norm(columns: Callable[[jax.Array], jax.Array], x, scale, bias, g) -> tuple[jax.Array, ...]:
    """Second note: any norm as batch norm of what `columns` (a transpose, a reshape) makes of x (2.8).

    The results are y, dx, dscale and dbias. Channels are axis 1, in x and in the parameters' own (C,) shape; only x_hat
    goes through batch norm, with scale 1.
    """
    per_channel = (-1,) + (1,) * (x.ndim - 2)
    others = (0, *range(2, x.ndim))
    scale, bias = scale.reshape(per_channel), bias.reshape(per_channel)

    def back(array):
        """The inverse of `columns`: it only moves entries, so its transpose is its inverse."""
        return jax.linear_transpose(columns, x)(array)[0]

    x_hat = back(standardized(columns(x))[0].x_hat)
    dx = back(closed_form(columns(x), 1.0, columns(g * scale)))
    return x_hat * scale + bias, dx, (g * x_hat).sum(others), g.sum(others)


# --- softmax and cross-entropy --------------------------------------------------------------------------------------


def softmax(x) -> jax.Array:
    """First note: exp(x_i - max(x)) / sum over j of exp(x_j - max(x)) (1.1)."""
    shifted = jnp.exp(x - x.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def softmax_jacobian(x) -> jax.Array:
    """First note: ds_i/dx_j = s_i (delta_ij - s_j), the matrix diag(s) - s s^T (1.2; the scan left columns of s)."""
    s = softmax(x)
    return jnp.diag(s) - jnp.outer(s, s)


def cross_entropy_at_label(logits, labels) -> jax.Array:
    """Third note, i = y: the quotient rule has both terms, and -ln p_y by its own logit is p_y - 1 (3.2)."""
    return jnp.take_along_axis(softmax(logits), labels[:, None], 1) - 1


def cross_entropy_elsewhere(logits, labels) -> jax.Array:
    """Third note, i != y: only the denominator moves, and the derivative is p_i (3.1; 0 is put at the label)."""
    return jnp.where(jnp.arange(logits.shape[1]) == labels[:, None], 0, softmax(logits))


# --- forward, backward, cache ---------------------------------------------------------------------------------------


def affine_forward(x, kernel, bias) -> tuple[jax.Array, Any]:
    """Fourth note: X kernel + bias with x flattened to X of shape (N, D); the cache is what came in (4.1)."""
    return x.reshape(len(x), -1) @ kernel + bias, (x, kernel, bias)


def affine_backward(g, cache) -> tuple[jax.Array, ...]:
    """Fourth note: dx = g kernel^T in x's shape, dkernel = X^T g, dbias = sum(g) (4.2)."""
    x, kernel, _ = cache
    return (g @ kernel.T).reshape(x.shape), x.reshape(len(x), -1).T @ g, g.sum(0)


def relu_forward(x) -> tuple[jax.Array, Any]:
    """Fourth note: max(x, 0), with x for the cache."""
    return jnp.maximum(x, 0), x


def relu_backward(g, cache) -> tuple[jax.Array, ...]:
    """Fourth note: dx = g where x > 0 (4.3)."""
    return (g * (cache > 0),)


def affine_relu_forward(x, kernel, bias) -> tuple[jax.Array, Any]:
    """Fourth note: the one after the other, with both caches."""
    a, affine_cache = affine_forward(x, kernel, bias)
    y, relu_cache = relu_forward(a)
    return y, (affine_cache, relu_cache)


def affine_relu_backward(g, cache) -> tuple[jax.Array, ...]:
    """Fourth note: the other way round."""
    affine_cache, relu_cache = cache
    (da,) = relu_backward(g, relu_cache)
    return affine_backward(da, affine_cache)


def svm_loss(scores, labels) -> tuple[jax.Array, jax.Array]:
    """Fourth note ("sum_loss" in the scan): the mean over N of the violated margins, and its gradient.

    dscores_j = [s_j - s_y + 1 > 0] / N for j != y, and minus their sum at y (4.4); the note does not write it out.
    """
    own = jnp.arange(scores.shape[1]) == labels[:, None]
    margins = jnp.where(own, 0, scores - jnp.take_along_axis(scores, labels[:, None], 1) + 1)
    slope = jnp.where(margins > 0, 1.0, 0.0)
    dscores = jnp.where(own, -slope.sum(1, keepdims=True), slope) / len(scores)
    return jnp.maximum(margins, 0).sum() / len(scores), dscores


def softmax_loss(logits, labels) -> tuple[jax.Array, jax.Array]:
    """Fourth note: the mean over N of the cross-entropies, and its gradient by the third note's two cases (4.5)."""
    p = jnp.take_along_axis(softmax(logits), labels[:, None], 1)
    own = jnp.arange(logits.shape[1]) == labels[:, None]
    dlogits = jnp.where(own, cross_entropy_at_label(logits, labels), cross_entropy_elsewhere(logits, labels))
    return -jnp.log(p).mean(), dlogits / len(logits)


# --- convolution ----------------------------------------------------------------------------------------------------


def remainder(size: int, window: int, stride: int, pad: int) -> int:
    """The rows at the end that no window reaches: 0 where the stride divides, as the second note takes for granted."""
    return (size + 2 * pad - window) % stride


def pad_space(array, *axes: tuple[int, int, int]) -> jax.Array:
    """Each spatial axis of an NHWC array with zeros (low, high, between neighbours); a negative number crops."""
    return lax.pad(array, jnp.zeros((), array.dtype), [(0, 0, 0), *axes, (0, 0, 0)])


def conv_dkernel(x, g, window: tuple[int, int], stride: int, pad: int) -> jax.Array:
    """Second note, (2.9): dW = the padded x correlated with g, stride - 1 zeros between its rows, at stride 1.

    The scan speaks of rows taken at the stride's distance: the zeros leave just those. Channels of x go as examples,
    the batch is summed over. The rows that no window reaches are cropped, or dW would have as many rows too many.
    """
    rests = [remainder(size, k, stride, pad) for size, k in zip(x.shape[1:3], window, strict=True)]
    padded = pad_space(x, *((pad, pad - rest, 0) for rest in rests))
    dilated = pad_space(g, *[(0, 0, stride - 1)] * 2)
    return lax.conv_general_dilated(padded, dilated, (1, 1), "VALID", dimension_numbers=("CHWN", "IHWO", "HWNC"))


def conv_dx(kernel, g, size: tuple[int, int], stride: int, pad: int) -> jax.Array:
    """Second note, (2.10): dX = g, stride - 1 zeros between rows, K - 1 around, correlated with rot180(W) at stride 1.

    The result is the padded x's gradient: its borders come off. Where the stride does not divide, the rows that no
    window reaches are missing, and their gradient is 0.
    """
    window = kernel.shape[:2]
    dilated = pad_space(g, *((k - 1, k - 1, stride - 1) for k in window))
    rotated = kernel[::-1, ::-1].swapaxes(2, 3)
    names = ("NHWC", "HWIO", "NHWC")
    padded_dx = lax.conv_general_dilated(dilated, rotated, (1, 1), "VALID", dimension_numbers=names)
    rests = [remainder(n, k, stride, pad) for n, k in zip(size, window, strict=True)]
    return pad_space(padded_dx, *((-pad, rest - pad, 0) for rest in rests))


def size_of_padded_dx(size: int, window: int, stride: int, pad: int) -> int:
    """Second note: with H' = (H + 2P - K) / S + 1, dX of the padded x has as many rows as the padded x has, H + 2P.

    g with its zeros: (H' - 1) (S - 1) + H' + 2 (K - 1)    correlated with K rows: (H' - 1) S + K = H + 2P  (2.11, 2.12)
    """
    out = (size + 2 * pad - window) // stride + 1
    return (out - 1) * (stride - 1) + out + 2 * (window - 1) - window + 1
