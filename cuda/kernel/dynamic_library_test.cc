// SPDX-License-Identifier: Apache-2.0
#include "cuda/kernel/dynamic_library.h"

#include <gtest/gtest.h>

namespace oneshot {
namespace {

constexpr char kPresent[] = "libm.so.6";
constexpr char kAbsent[] = "liboneshot_there_is_no_such_library.so.1";

TEST(DynamicLibraryTest, ResolvesFunctions) {
  const DynamicLibrary library = DynamicLibrary::Open(kPresent);
  ASSERT_TRUE(library);
  double (*root)(double) = nullptr;
  ASSERT_TRUE(library.Resolve("sqrt", root));
  EXPECT_EQ(root(9.0), 3.0);
}

TEST(DynamicLibraryTest, AFunctionThatIsMissing) {
  const DynamicLibrary library = DynamicLibrary::Open(kPresent);
  ASSERT_TRUE(library);
  void (*function)() = [] {};
  EXPECT_FALSE(library.Resolve("oneshot_there_is_no_such_function", function));
  EXPECT_EQ(function, nullptr);
}

TEST(DynamicLibraryTest, ALibraryThatIsMissingHasNoFunctions) {
  // dlsym would take a null handle for the whole process, which has malloc.
  for (const DynamicLibrary& library :
       {DynamicLibrary(), DynamicLibrary::Open(kAbsent),
        DynamicLibrary::FindLoaded(kAbsent)}) {
    EXPECT_FALSE(library);
    void* (*function)(size_t) = nullptr;
    EXPECT_FALSE(library.Resolve("malloc", function));
  }
}

TEST(DynamicLibraryTest, FindLoadedLoadsNothing) {
  // Of the C library, and needed by nothing in this test.
  constexpr char kUnused[] = "libBrokenLocale.so.1";
  EXPECT_FALSE(DynamicLibrary::FindLoaded(kUnused));
  ASSERT_TRUE(DynamicLibrary::Open(kUnused));
  EXPECT_TRUE(DynamicLibrary::FindLoaded(kUnused));
}

}  // namespace
}  // namespace oneshot
