/* Low-bit matrix products and convolutions on CPUs: the C interface of libcompress_kernels.
 *
 * Plain C, no dependencies: Python calls it by ctypes, onnxruntime through RegisterCustomOps in the same library (then
 * none of these functions is needed). Weights are read in their stored layout; nothing is repacked or kept. Tensors are
 * dense, row-major, and may have any alignment. Every function is reentrant; results do not depend on the number of
 * threads. The meaning of every argument is that of the operator table, compress/kernels/schema.py.
 */
#ifndef COMPRESS_KERNELS_H
#define COMPRESS_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define COMPRESS_API __declspec(dllexport)
#else
#define COMPRESS_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Grows with every change of the structures below; callers compare it before anything else. */
#define COMPRESS_KERNELS_ABI 1

typedef enum {
  COMPRESS_OK = 0,
  COMPRESS_INVALID = 1,     /* arguments that contradict each other: a malformed model */
  COMPRESS_UNSUPPORTED = 2, /* a valid call that these kernels do not compute */
  COMPRESS_NO_MEMORY = 3
} compress_status;

enum { COMPRESS_ACTIVATION_NONE = 0, COMPRESS_ACTIVATION_GELU_TANH = 1, COMPRESS_ACTIVATION_SILU = 2 };
enum { COMPRESS_MODE_EXACT = 0, COMPRESS_MODE_FOLDED = 1 };

/* Weights of qmatmul and qconv2d. */
typedef struct {
  const uint8_t* codes;        /* [n, k_blocks, block_bytes], least significant bits first */
  const float* scales;         /* [scale_rows, scale_columns]: 1 or n, 1 or k_blocks */
  const uint8_t* zero_points;  /* [zero_rows, zero_columns] or null: 2^(bits - 1) */
  const float* table;          /* [2^bits] or null: codes are integers */
  int64_t n, k;
  int64_t block_size;
  int64_t scale_rows, scale_columns;
  int64_t zero_rows, zero_columns;
  int32_t bits;                /* 1 to 8 */
  int32_t mode;                /* COMPRESS_MODE_* */
} compress_weight;

/* Vector-quantized weights of vqmatmul and vqconv2d. */
typedef struct {
  const uint8_t* codes;   /* [n, ceil(ceil(k / d) * bits / 8)] */
  const float* codebook;  /* [2^bits, d] */
  const float* scales;    /* [scale_rows]: 1 or n */
  int64_t n, k;
  int64_t d;
  int64_t scale_rows;
  int32_t bits;
  int32_t mode;
} compress_vectors;

/* How inputs become integers, and what happens to the sums. */
typedef struct {
  const float* smooth;             /* [k] (convolutions: [channels]) or null */
  const float* act_scale;          /* null: each row (image) its own, largest magnitude / act_max */
  const float* act_zero_point;     /* null: 0 */
  int64_t act_scale_rows;          /* 1, or the number of rows (images) */
  int64_t act_zero_rows;
  int32_t act_low, act_high;       /* codes: -128, 127 for int8; 0, 255 for uint8; -8, 7 for int4; 0, 15 for uint4 */
  float act_max;                   /* largest value of the format: 127, 255, 7, 15 */
  const float* bias;               /* [n] or null */
  const float* low_rank_a;         /* [k, rank] or null */
  const float* low_rank_b;         /* [rank, n] */
  int64_t rank;
  const float* residual;           /* shape of y, or null */
  int32_t activation;              /* COMPRESS_ACTIVATION_* */
} compress_options;

typedef struct {
  int64_t batch, channels, height, width;
  int64_t kernel[2], stride[2], padding[2], dilation[2];
  int64_t groups;
} compress_geometry;

/* Runs body(context, i) for every i below count, on any threads, and returns when all are done. */
typedef void (*compress_body)(void* context, size_t i);
typedef struct {
  void (*run)(void* self, compress_body body, void* context, size_t count);
  void* self;
  int32_t threads; /* how many bodies may run at once */
} compress_runner;

/* y[rows, n] = x[rows, k] W^T. `runner` null: the calling thread alone. `message` (may be null) gets a sentence when
 * the status is not COMPRESS_OK; y is then unspecified. */
COMPRESS_API compress_status compress_qmatmul(const float* x, int64_t rows, const compress_weight* weight,
                                              const compress_options* options, float* y, const compress_runner* runner,
                                              char* message, size_t message_size);
COMPRESS_API compress_status compress_vqmatmul(const float* x, int64_t rows, const compress_vectors* weight,
                                               const compress_options* options, float* y,
                                               const compress_runner* runner, char* message, size_t message_size);
/* y[batch, n, h', w']; weight->k = channels / groups * kernel height * kernel width. */
COMPRESS_API compress_status compress_qconv2d(const float* x, const compress_geometry* geometry,
                                              const compress_weight* weight, const compress_options* options, float* y,
                                              const compress_runner* runner, char* message, size_t message_size);
COMPRESS_API compress_status compress_vqconv2d(const float* x, const compress_geometry* geometry,
                                               const compress_vectors* weight, const compress_options* options,
                                               float* y, const compress_runner* runner, char* message,
                                               size_t message_size);

/* Whether a call of these facts will be computed, before there is data: pointers only tell presence (null or not); of
 * all data only the table or codebook is read. Rows and batch do not matter. */
COMPRESS_API compress_status compress_qmatmul_supported(const compress_weight* weight, const compress_options* options,
                                                        char* message, size_t message_size);
COMPRESS_API compress_status compress_vqmatmul_supported(const compress_vectors* weight,
                                                         const compress_options* options, char* message,
                                                         size_t message_size);
COMPRESS_API compress_status compress_qconv2d_supported(const compress_geometry* geometry,
                                                        const compress_weight* weight, const compress_options* options,
                                                        char* message, size_t message_size);
COMPRESS_API compress_status compress_vqconv2d_supported(const compress_geometry* geometry,
                                                         const compress_vectors* weight,
                                                         const compress_options* options, char* message,
                                                         size_t message_size);

COMPRESS_API int32_t compress_kernels_abi(void);
/* The instruction set in use: avx512vnni, avxvnni, avx2, neon_dot or scalar. */
COMPRESS_API const char* compress_isa(void);
/* All of them that this CPU runs, best first, separated by spaces. */
COMPRESS_API const char* compress_isas(void);
/* Use one from now on (null: the best); calls that are running keep theirs. */
COMPRESS_API compress_status compress_use_isa(const char* name);

/* A pool of this library's own, for callers that bring no threads; null when there is no memory. It has fewer threads
 * (`threads` says how many) where the system does not give more. Runners stay valid until they are destroyed, but do
 * not survive a fork: a child process must make its own, and must neither use nor destroy its parent's. */
COMPRESS_API compress_runner* compress_pool_create(int32_t threads);
COMPRESS_API void compress_pool_destroy(compress_runner* pool);
/* A runner on the caller's OpenMP runtime: the address of its GOMP_parallel, as PyTorch's libgomp exports it. */
COMPRESS_API compress_runner* compress_openmp_create(void* gomp_parallel, int32_t threads);
COMPRESS_API void compress_openmp_destroy(compress_runner* runner);

/* Billions of operations a second (2 a multiply-add) of nothing but byte products in registers: the limit of this CPU.
 * Takes about `seconds`, at most 10. 0 where no instruction set with such products is compiled in. */
COMPRESS_API double compress_peak_gops(int32_t threads, double seconds);
/* Seconds of one qmatmul with its rows already quantized: the matrix product alone, one run; 0 without rows. */
COMPRESS_API compress_status compress_time_qmatmul(const float* x, int64_t rows, const compress_weight* weight,
                                                   const compress_options* options, float* y,
                                                   const compress_runner* runner, double* seconds, char* message,
                                                   size_t message_size);

#ifdef __cplusplus
}
#endif
#endif
