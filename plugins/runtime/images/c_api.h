// Prepared images for Python's tests, which compare them with the models' own processors. No exception leaves a
// function; it returns 0, or a code of awq2trt.hpp, and then awq2trt_images_last_error() describes the error on this
// thread until the next call.
#pragma once

#include <stddef.h>
#include <stdint.h>

#define AWQ2TRT_IMAGES_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

AWQ2TRT_IMAGES_API const char* awq2trt_images_last_error(void);

// Size of a prepared image, by the text of a preprocessor_config.json; 0 x 0 if it depends on the image's own.
AWQ2TRT_IMAGES_API int32_t awq2trt_images_size(const char* config, int64_t* width, int64_t* height);
// `prepared`: room for [3, height, width] of that size, which must not be 0.
AWQ2TRT_IMAGES_API int32_t awq2trt_images_prepare(const char* config, const uint8_t* rgb, int64_t width, int64_t height,
                                                  float* prepared);

// Rows and columns of the patches that an image is divided into, and how many numbers a patch has; the config must be
// of a processor that makes patches.
AWQ2TRT_IMAGES_API int32_t awq2trt_images_grid(const char* config, int64_t width, int64_t height, int64_t* rows,
                                               int64_t* columns, int64_t* numbers);
// `prepared`: room for all patches; for windows of `side` pieces, `places` has room for two numbers a patch, `windows`
// for one a slot of each window, and `slots` for one a patch.
AWQ2TRT_IMAGES_API int32_t awq2trt_images_divide(const char* config, const uint8_t* rgb, int64_t width, int64_t height,
                                                 int64_t side, float* prepared, int64_t* places, int64_t* windows,
                                                 int64_t* slots);

#ifdef __cplusplus
}
#endif
