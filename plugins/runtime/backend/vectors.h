// Functions that the compiler also makes for vector units that not every CPU has; the program takes the best version
// for the CPU it runs on. The operations are the same, and so are their results.
#pragma once

// ThreadSanitizer starts after these choices are made, and fails.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_THREAD__)
#define AWQ2TRT_VECTORS __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define AWQ2TRT_VECTORS
#endif
