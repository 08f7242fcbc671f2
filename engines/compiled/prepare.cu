// Frames in, the tensor a CLIP image tower takes out, on the GPU: `prepare` of ../preparing.py with PIL's own arithmetic.
//
// PIL resizes in whole numbers: 8-bit pixels times weights in fixed point of 22 bits, a half added, shifted, clipped to
// 8 bits; columns first, then rows (Resample.c). Whole numbers have no rounding of their own, so what comes out here is
// PIL's picture to the level, on every GPU. A thread makes one pixel, so that neighbors read neighbors and nothing has to be
// shared: at 720p both passes together read 2 MB, which is not worth more.
//
// Compiled to prepare.ptx by `python -m clipsight.engines.compiled.nvrtc`, which says how. No header is included: NVRTC, which
// compiles it, brings none, and the tests compile the same text for the CPU.

typedef unsigned char uint8;

// ... which a compiler that is not CUDA's is told by HOST: then a loop stands in the place of the grid.
#ifndef HOST
#define AT(i) (blockIdx.i * blockDim.i + threadIdx.i)
#define KERNEL extern "C" __global__ void
#endif

#define HALF (1 << 21)
#define LEVEL(sum) ((sum) < 0 ? 0 : (sum) >> 22 > 255 ? 255 : (sum) >> 22)

// frames: n x height x width x 3 BGR -> mid: n x height x out_width x 3 RGB. Output column x is
// weights[x * taps + 0 .. taps] times the frame's columns from lo[x] on; unused weights are 0 and stay inside the frame.
KERNEL columns(const uint8* __restrict__ frames, int height, int width, const int* __restrict__ lo,
               const int* __restrict__ weights, int taps, int out_width, uint8* __restrict__ mid)
{
    int x = AT(x), y = AT(y);
    if (x >= out_width || y >= height) return;
    long long row = (long long)AT(z) * height + y;  // a batch of 4K frames has more bytes than an int can count
    const uint8* pixel = frames + (row * width + lo[x]) * 3;
    const int* weight = weights + x * taps;
    int b = HALF, g = HALF, r = HALF;
    for (int t = 0; t < taps; ++t, pixel += 3) {
        b += weight[t] * pixel[0];
        g += weight[t] * pixel[1];
        r += weight[t] * pixel[2];
    }
    uint8* out = mid + (row * out_width + x) * 3;
    out[0] = LEVEL(r);
    out[1] = LEVEL(g);
    out[2] = LEVEL(b);
}

// mid: n x height x out_width x 3 RGB -> pixel_values: n x 3 x size x size, level * gain + shift of each channel, and 0,
// which is the mean color, where the out_height x out_width picture at (left, top) does not reach.
KERNEL rows(const uint8* __restrict__ mid, int height, int out_width, const int* __restrict__ lo,
            const int* __restrict__ weights, int taps, int out_height, int size, int top, int left,
            const float* __restrict__ gain_shift, float* __restrict__ pixel_values)
{
    int x = AT(x), y = AT(y);
    if (x >= size || y >= size) return;
    long long plane = (long long)size * size;
    float* out = pixel_values + AT(z) * 3 * plane + y * size + x;
    int from_x = x - left, from_y = y - top;
    if (from_x < 0 || from_x >= out_width || from_y < 0 || from_y >= out_height) {
        out[0] = out[plane] = out[2 * plane] = 0.0f;
        return;
    }
    const uint8* pixel = mid + (((long long)AT(z) * height + lo[from_y]) * out_width + from_x) * 3;
    const int* weight = weights + from_y * taps;
    int r = HALF, g = HALF, b = HALF;
    for (int t = 0; t < taps; ++t, pixel += out_width * 3) {
        r += weight[t] * pixel[0];
        g += weight[t] * pixel[1];
        b += weight[t] * pixel[2];
    }
    out[0] = LEVEL(r) * gain_shift[0] + gain_shift[3];
    out[plane] = LEVEL(g) * gain_shift[1] + gain_shift[4];
    out[2 * plane] = LEVEL(b) * gain_shift[2] + gain_shift[5];
}
