"""The C functions that steps call, and what is around them. Only those that are needed are written.

``{weight}`` is the type of a weight, ``{scales}`` and ``{scale}`` what int8 weights are multiplied by.
"""

from __future__ import annotations

PARTS = {
    "clip": """
static float clip(float v, float low, float high)
{
    return v < low ? low : v > high ? high : v;
}
""",
    "conv": """
/* (ci, h, w) to (co, oh, ow), each the largest of mh x mw neighbours. Places outside the map count as 0. */
static void conv(const float *x, int ci, int h, int w, float *y, int co, int oh, int ow,
                 const {weight} *k, {scales}const float *bias, int kh, int kw, int sh, int sw,
                 int ph, int pw, int dh, int dw, int groups, int mh, int mw, float low, float high)
{
    const int per = ci / groups;
    for (int o = 0; o < co; o++) {
        const float *part = x + o / (co / groups) * per * h * w;
        const {weight} *own = k + o * per * kh * kw;
        for (int i = 0; i < oh; i++)
            for (int j = 0; j < ow; j++) {
                float best = -INFINITY;
                for (int m = 0; m < mh * mw; m++) {
                    const int top = (i * mh + m / mw) * sh - ph, left = (j * mw + m % mw) * sw - pw;
                    float sum = 0.0f;
                    for (int c = 0; c < per; c++)
                        for (int a = 0; a < kh; a++) {
                            const int row = top + a * dh;
                            if (row < 0 || row >= h)
                                continue;
                            for (int b = 0; b < kw; b++) {
                                const int column = left + b * dw;
                                if (column >= 0 && column < w)
                                    sum += part[(c * h + row) * w + column]
                                           * (float)own[(c * kh + a) * kw + b];
                            }
                        }
                    best = sum > best ? sum : best;
                }
                *y++ = clip({scale}best + bias[o], low, high);
            }
    }
}
""",
    "linear": """
/* (rows, in) to (rows, out). */
static void linear(const float *x, int rows, int in, float *y, int out, const {weight} *k,
                   {scales}const float *bias, float low, float high)
{
    for (int r = 0; r < rows; r++)
        for (int o = 0; o < out; o++) {
            float sum = 0.0f;
            for (int i = 0; i < in; i++)
                sum += x[r * in + i] * (float)k[o * in + i];
            *y++ = clip({scale}sum + bias[o], low, high);
        }
}
""",
    "affine": """
static void affine(const float *x, float *y, int channels, int inner, const float *scale, const float *shift,
                   float low, float high)
{
    for (int c = 0; c < channels; c++)
        for (int i = 0; i < inner; i++)
            *y++ = clip(*x++ * scale[c] + shift[c], low, high);
}
""",
    "matmul": """
/* batch times (rows, inner) times (inner, columns). */
static void matmul(const float *a, const float *b, float *y, int batch, int rows, int inner, int columns)
{
    for (int n = 0; n < batch; n++, a += rows * inner, b += inner * columns)
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < columns; c++) {
                float sum = 0.0f;
                for (int i = 0; i < inner; i++)
                    sum += a[r * inner + i] * b[i * columns + c];
                *y++ = sum;
            }
}
""",
    "max_pool": """
static void max_pool(const float *x, int channels, int h, int w, float *y, int oh, int ow, int kh, int kw,
                     int sh, int sw, int ph, int pw, int dh, int dw)
{
    for (int c = 0; c < channels; c++, x += h * w)
        for (int i = 0; i < oh; i++)
            for (int j = 0; j < ow; j++) {
                float best = -INFINITY;
                for (int a = 0; a < kh; a++)
                    for (int b = 0; b < kw; b++) {
                        const int row = i * sh - ph + a * dh, column = j * sw - pw + b * dw;
                        if (row >= 0 && row < h && column >= 0 && column < w && x[row * w + column] > best)
                            best = x[row * w + column];
                    }
                *y++ = best;
            }
}
""",
    "avg_pool": """
/* whole: places of the padding count too, where the divisor is not given. */
static void avg_pool(const float *x, int channels, int h, int w, float *y, int oh, int ow, int kh, int kw,
                     int sh, int sw, int ph, int pw, int whole, int divisor)
{
    for (int c = 0; c < channels; c++, x += h * w)
        for (int i = 0; i < oh; i++)
            for (int j = 0; j < ow; j++) {
                float sum = 0.0f;
                int seen = 0, inside = 0;
                for (int a = 0; a < kh; a++)
                    for (int b = 0; b < kw; b++) {
                        const int row = i * sh - ph + a, column = j * sw - pw + b;
                        seen += row < h + ph && column < w + pw;
                        if (row >= 0 && row < h && column >= 0 && column < w) {
                            sum += x[row * w + column];
                            inside++;
                        }
                    }
                *y++ = sum / (float)(divisor ? divisor : whole ? seen : inside);
            }
}
""",
    "softmax": """
static void softmax(const float *x, float *y, int outer, int count, int inner)
{
    for (int o = 0; o < outer; o++)
        for (int i = 0; i < inner; i++) {
            const int at = o * count * inner + i;
            float best = -INFINITY, sum = 0.0f;
            for (int n = 0; n < count; n++)
                best = x[at + n * inner] > best ? x[at + n * inner] : best;
            for (int n = 0; n < count; n++)
                sum += y[at + n * inner] = expf(x[at + n * inner] - best);
            for (int n = 0; n < count; n++)
                y[at + n * inner] /= sum;
        }
}
""",
    "normalise": """
/* Rows to mean 0 and variance 1, then scale and shift by channel. */
static void normalise(const float *x, float *y, int rows, int count, int inner, int cycle, float eps,
                      const float *scale, const float *shift)
{
    for (int r = 0; r < rows; r++) {
        float mean = 0.0f, variance = 0.0f;
        for (int i = 0; i < count; i++)
            mean += x[r * count + i];
        mean /= (float)count;
        for (int i = 0; i < count; i++)
            variance += (x[r * count + i] - mean) * (x[r * count + i] - mean);
        const float gain = 1.0f / sqrtf(variance / (float)count + eps);
        for (int i = 0; i < count; i++) {
            const int c = (r * count + i) / inner % cycle;
            y[r * count + i] = (x[r * count + i] - mean) * gain * scale[c] + shift[c];
        }
    }
}
""",
    "reduce_mean": """
static void reduce_mean(const float *x, float *y, int outer, int count, int inner)
{
    for (int o = 0; o < outer; o++)
        for (int i = 0; i < inner; i++) {
            float sum = 0.0f;
            for (int n = 0; n < count; n++)
                sum += x[(o * count + n) * inner + i];
            *y++ = sum / (float)count;
        }
}
""",
    "reduce_sum": """
static void reduce_sum(const float *x, float *y, int outer, int count, int inner)
{
    for (int o = 0; o < outer; o++)
        for (int i = 0; i < inner; i++) {
            float sum = 0.0f;
            for (int n = 0; n < count; n++)
                sum += x[(o * count + n) * inner + i];
            *y++ = sum;
        }
}
""",
    "reduce_amax": """
static void reduce_amax(const float *x, float *y, int outer, int count, int inner)
{
    for (int o = 0; o < outer; o++)
        for (int i = 0; i < inner; i++) {
            float best = -INFINITY;
            for (int n = 0; n < count; n++)
                best = x[(o * count + n) * inner + i] > best ? x[(o * count + n) * inner + i] : best;
            *y++ = best;
        }
}
""",
}

UNARY = {  # of a float v; {0} and on are the operation's own numbers
    "leaky_relu": "v >= 0.0f ? v : v * {0}",
    "gelu": "0.5f * v * (1.0f + erff(v * 0.70710678f))",
    "gelu_tanh": "0.5f * v * (1.0f + tanhf(0.79788456f * (v + 0.044715f * v * v * v)))",
    "silu": "v / (1.0f + expf(-v))",
    "sigmoid": "1.0f / (1.0f + expf(-v))",
    "tanh": "tanhf(v)",
    "hardswish": "v * (v < -3.0f ? 0.0f : v > 3.0f ? 6.0f : v + 3.0f) / 6.0f",
    "hardsigmoid": "(v < -3.0f ? 0.0f : v > 3.0f ? 6.0f : v + 3.0f) / 6.0f",
    "exp": "expf(v)",
    "sqrt": "sqrtf(v)",
    "rsqrt": "1.0f / sqrtf(v)",
    "neg": "-v",
    "abs": "fabsf(v)",
}

HEAD = """/* Written by Weightloom. C99, no heap, nothing but the standard library{libm}.
 *
{about}
 *
 * weightloom_predict(image, logits) reads WEIGHTLOOM_INPUTS floats, channel after channel, row after row,
 * each (byte - WEIGHTLOOM_MEAN) * WEIGHTLOOM_SCALE, writes WEIGHTLOOM_CLASSES logits and returns the place
 * of the largest. It is not for two threads at once. With -DWEIGHTLOOM_MAIN the file is a program that reads
 * pictures as float32 from the standard input and writes their logits as float32.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define WEIGHTLOOM_INPUTS {inputs}
#define WEIGHTLOOM_CLASSES {classes}
#define WEIGHTLOOM_MEAN {mean}
#define WEIGHTLOOM_SCALE {scale}

extern const char *const weightloom_class_names[WEIGHTLOOM_CLASSES];
int weightloom_predict(const float *image, float *logits);

const char *const weightloom_class_names[WEIGHTLOOM_CLASSES] = {{
{names}
}};
"""

PREDICT = """
int weightloom_predict(const float *image, float *logits)
{{
{calls}
    int best = 0;
    for (int i = 1; i < WEIGHTLOOM_CLASSES; i++)
        best = logits[i] > logits[best] ? i : best;
    return best;
}}

#ifdef WEIGHTLOOM_MAIN
#include <stdio.h>

int main(void)
{{
    static float image[WEIGHTLOOM_INPUTS], logits[WEIGHTLOOM_CLASSES];
    while (fread(image, sizeof(float), WEIGHTLOOM_INPUTS, stdin) == WEIGHTLOOM_INPUTS) {{
        weightloom_predict(image, logits);
        fwrite(logits, sizeof(float), WEIGHTLOOM_CLASSES, stdout);
    }}
    return 0;
}}
#endif
"""
