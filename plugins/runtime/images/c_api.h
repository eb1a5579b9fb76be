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
// Shape of what is made of an image, of `rank` axes with room for 4, and its grid: of pieces or tiles, or 0 x 0.
AWQ2TRT_IMAGES_API int32_t awq2trt_images_shape(const char* config, const uint8_t* rgb, int64_t width, int64_t height,
                                                int64_t* rank, int64_t* shape, int64_t* rows, int64_t* columns);
// `prepared`: room for all numbers of that shape.
AWQ2TRT_IMAGES_API int32_t awq2trt_images_prepare(const char* config, const uint8_t* rgb, int64_t width, int64_t height,
                                                  float* prepared);

// Patches of a grid of pieces, of `merge` patches a side, in windows of `side` pieces: `places` has room for two
// numbers a patch, `windows` for one a slot of each window, and `slots` for one a patch.
AWQ2TRT_IMAGES_API int32_t awq2trt_images_windows(int64_t rows, int64_t columns, int64_t merge, int64_t side,
                                                  int64_t* places, int64_t* windows, int64_t* slots);

// Order of the pieces of a grid of tiles of `side` pieces a side, that lie side by side: how many there are, and if
// `order` is not null, all of them. `width` and `height`: of the image.
AWQ2TRT_IMAGES_API int32_t awq2trt_images_order(int64_t side, int64_t rows, int64_t columns, int64_t width,
                                                int64_t height, int64_t* count, int64_t* order);

#ifdef __cplusplus
}
#endif
