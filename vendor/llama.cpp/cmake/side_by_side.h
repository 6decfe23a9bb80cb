// ggml's quantizers with their searches done side by side.
//
// For each 16 or 32 weights ggml tries 16 to 37 scales, one after the other, and keeps the best. Each trial is a
// chain of additions, of which a CPU does one every few cycles. Here a trial is a lane of a vector: each lane
// adds the numbers that ggml adds, in ggml's order, so that the result is the same to the last bit.
//
// targets.cmake has this file included in a copy of ggml-quants.c, whose own three functions of these names it
// renames to one_by_one_*. All else (weights, scales of scales, packing) stays ggml's. What is computed here is
// what those three compute (by the ggml authors, MIT licence), since every bit must be theirs.

enum { LANES = 8, MOST_WEIGHTS = 32 };

typedef float   lanes     __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t int_lanes __attribute__((vector_size(LANES * sizeof(int32_t))));

#define ALWAYS_INLINE static inline __attribute__((always_inline))

static const lanes lane_number = { 0, 1, 2, 3, 4, 5, 6, 7 };

ALWAYS_INLINE int_lanes pick(int_lanes where, int_lanes yes, int_lanes no) {
    return (yes & where) | (no & ~where);
}

// nearest_int of each lane, brought between low and high.
ALWAYS_INLINE lanes levels_of(lanes values, int low, int high) {
    int_lanes level = ((int_lanes) (values + 12582912.f) & 0x007fffff) - 0x00400000;
    level = pick(level < high, level, (int_lanes) { 0 } + high);
    level = pick(level > low, level, (int_lanes) { 0 } + low);
    return __builtin_convertvector(level, lanes);
}

ALWAYS_INLINE lanes cost_of(lanes difference, bool use_mad) {
    return use_mad ? (lanes) ((int_lanes) difference & 0x7fffffff) : difference * difference;
}

// A candidate that is better moves the minimum, and with it all candidates that follow: those are tried anew.
static float search_scale_and_min(int n, int nmax, const float * GGML_RESTRICT x,
        const float * GGML_RESTRICT weights, uint8_t * GGML_RESTRICT L, float * GGML_RESTRICT the_min,
        float rmin, float rdelta, int nstep, bool use_mad) {
    GGML_ASSERT(n <= MOST_WEIGHTS && nstep >= 1);
    float min = x[0];
    float max = x[0];
    float sum_w = weights[0];
    float sum_x = sum_w * x[0];
    for (int i = 1; i < n; ++i) {
        if (x[i] < min) min = x[i];
        if (x[i] > max) max = x[i];
        sum_w += weights[i];
        sum_x += weights[i] * x[i];
    }
    if (min > 0) min = 0;
    if (max == min) {
        memset(L, 0, n);
        *the_min = -min;
        return 0.f;
    }
    const float plain = nmax/(max - min);
    float scale = 1/plain;
    float best = 0;
    for (int i = 0; i < n; ++i) {
        const int level = nearest_int(plain*(x[i] - min));
        L[i] = MAX(0, MIN(nmax, level));
        const float difference = scale * L[i] + min - x[i];
        best += weights[i] * (use_mad ? fabsf(difference) : difference * difference);
    }
    int step = 0;
    while (step <= nstep) {
        const lanes iscale = (rmin + rdelta*(lane_number + (float) step) + (float) nmax)/(max - min);
        lanes levels[MOST_WEIGHTS];
        lanes sum_l = { 0 }, sum_l2 = { 0 }, sum_xl = { 0 };
        for (int i = 0; i < n; ++i) {
            levels[i] = levels_of(iscale*(x[i] - min), 0, nmax);
            const lanes wl = weights[i]*levels[i];
            sum_l  += wl;
            sum_l2 += wl*levels[i];
            sum_xl += wl*x[i];
        }
        const lanes D = sum_w * sum_l2 - sum_l * sum_l;
        lanes scales = (sum_w * sum_xl - sum_x * sum_l)/D;
        lanes mins   = (sum_l2 * sum_x - sum_l * sum_xl)/D;
        const int_lanes above = mins > 0.f;
        scales = (lanes) pick(above, (int_lanes) (sum_xl / sum_l2), (int_lanes) scales);
        mins   = (lanes) pick(above, (int_lanes) { 0 }, (int_lanes) mins);
        lanes errors = { 0 };
        for (int i = 0; i < n; ++i) {
            errors += weights[i] * cost_of(scales * levels[i] + mins - x[i], use_mad);
        }
        int lane = 0;
        while (lane < LANES && !(D[lane] > 0 && errors[lane] < best)) ++lane;
        step += lane;
        if (lane < LANES && step <= nstep) {
            for (int i = 0; i < n; ++i) L[i] = levels[i][lane];
            best  = errors[lane];
            scale = scales[lane];
            min   = mins[lane];
            ++step;
        }
    }
    *the_min = -min;
    return scale;
}

static float make_qkx2_quants(int n, int nmax, const float * x, const float * weights, uint8_t * L,
        float * the_min, uint8_t * Laux, float rmin, float rdelta, int nstep, bool use_mad) {
    GGML_UNUSED(Laux);
    return search_scale_and_min(n, nmax, x, weights, L, the_min, rmin, rdelta, nstep, use_mad);
}

// It differs in what it does without weights, which k-quants never ask of it.
static float make_qkx3_quants(int n, int nmax, const float * x, const float * weights, uint8_t * L,
        float * the_min, uint8_t * Laux, float rmin, float rdelta, int nstep, bool use_mad) {
    GGML_ASSERT(weights);
    return make_qkx2_quants(n, nmax, x, weights, L, the_min, Laux, rmin, rdelta, nstep, use_mad);
}

// Here no candidate depends on another one.
static float make_qx_quants(int n, int nmax, const float * GGML_RESTRICT x, int8_t * GGML_RESTRICT L,
        int rmse_type, const float * GGML_RESTRICT qw) {
    GGML_ASSERT(rmse_type == 1);
    float max = 0;
    float amax = 0;
    for (int i = 0; i < n; ++i) {
        const float ax = fabsf(x[i]);
        if (ax > amax) { amax = ax; max = x[i]; }
    }
    if (amax < GROUP_MAX_EPS) {
        memset(L, 0, n);
        return 0.f;
    }
    // Their shifts go from -9 to 9; the plain one, without a shift, is to be beaten by the others.
    enum { PLAIN = 9, CANDIDATES = 2*PLAIN + 1, VECTORS = (CANDIDATES + LANES - 1)/LANES };
    lanes iscale[VECTORS], sumlx[VECTORS] = { { 0 } }, suml2[VECTORS] = { { 0 } };
    for (int v = 0; v < VECTORS; ++v) {
        iscale[v] = -((float) nmax + 0.1f*(lane_number + (float) (LANES*v - PLAIN))) / max;
    }
    for (int i = 0; i < n; ++i) {
        const float w = qw ? qw[i] : x[i]*x[i];
        const float wx = w*x[i];
        for (int v = 0; v < VECTORS; ++v) {
            const lanes level = levels_of(iscale[v]*x[i], -nmax, nmax - 1);
            sumlx[v] += wx*level;
            suml2[v] += w*level*level;
        }
    }
    const float * inverses = (const float *) iscale, * lx = (const float *) sumlx, * l2 = (const float *) suml2;
    int chosen = PLAIN;
    float scale = l2[PLAIN] ? lx[PLAIN]/l2[PLAIN] : 0.f;
    float best = scale * lx[PLAIN];
    for (int it = 0; it < CANDIDATES; ++it) {
        if (it != PLAIN && l2[it] > 0 && lx[it]*lx[it] > best*l2[it]) {
            chosen = it;
            scale = lx[it]/l2[it];
            best = scale*lx[it];
        }
    }
    for (int i = 0; i < n; ++i) {
        const int level = nearest_int(inverses[chosen]*x[i]);
        L[i] = nmax + MAX(-nmax, MIN(nmax - 1, level));
    }
    return scale;
}

// Rows of a type as ggml_quantize_chunk makes them. Returns the bytes made: 0 for a type that is left to ggml.
__attribute__((visibility("default")))
size_t ggq_quantize(enum ggml_type type, const float * rows, void * made, int64_t count, int64_t width,
        const float * importance) {
    switch (type) {
        case GGML_TYPE_Q4_0: return quantize_q4_0(rows, made, count, width, importance);
        case GGML_TYPE_Q4_1: return quantize_q4_1(rows, made, count, width, importance);
        case GGML_TYPE_Q5_0: return quantize_q5_0(rows, made, count, width, importance);
        case GGML_TYPE_Q5_1: return quantize_q5_1(rows, made, count, width, importance);
        case GGML_TYPE_Q8_0: return quantize_q8_0(rows, made, count, width, importance);
        case GGML_TYPE_Q2_K: return quantize_q2_K(rows, made, count, width, importance);
        case GGML_TYPE_Q3_K: return quantize_q3_K(rows, made, count, width, importance);
        case GGML_TYPE_Q4_K: return quantize_q4_K(rows, made, count, width, importance);
        case GGML_TYPE_Q5_K: return quantize_q5_K(rows, made, count, width, importance);
        case GGML_TYPE_Q6_K: return quantize_q6_K(rows, made, count, width, importance);
        default: return 0;
    }
}
