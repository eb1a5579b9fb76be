# Copies the vendored template engine into the build folder, with our limits called from three of its statements. The
# engine itself bounds neither time nor memory, and forgets in some functions that a text came from a user; what the
# limits do is in text/engine_limits.h. The vendored files stay as they came.
#
# In: folder of the vendored `common`; out: the copy's folder.
function(limit_engine source destination)
  file(MAKE_DIRECTORY ${destination}/jinja)
  file(GLOB files RELATIVE ${source} ${source}/*.h ${source}/*.cpp ${source}/jinja/*.h ${source}/jinja/*.cpp)
  foreach(name ${files})
    file(READ ${source}/${name} text)
    if(name STREQUAL "jinja/value.h")
      limit_statement("using func_handler = std::function<func_hptr>;"
        "using func_handler = std::function<func_hptr>;\nvalue call_within_limits(const std::string & name, bool is_method, const func_handler & function, const func_args & args);")
      limit_statement("return val_func(new_args);"
        "return call_within_limits(name, static_cast<bool>(arg0), val_func, new_args);")
    elseif(name STREQUAL "jinja/runtime.cpp")
      limit_statement("#include \"value.h\"" "#include \"value.h\"\n#include \"text/engine_limits.h\"")
      limit_statement("return execute_impl(ctx);"
        "const ExecutionLevel level;\n        value result = execute_impl(ctx);\n        level.check(*this, result);\n        return result;")
      limit_statement("obj_ptr->insert(prop_name, rhs);"
        "refuse_cycle(object, rhs);\n        obj_ptr->insert(prop_name, rhs);")
    endif()
    set(copy ${destination}/${name})
    if(EXISTS ${copy})
      file(READ ${copy} before)
    else()
      set(before "")
    endif()
    if(NOT before STREQUAL text)  # an unchanged copy is not compiled again
      file(WRITE ${copy} "${text}")
    endif()
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${source}/${name})
  endforeach()
endfunction()

# Replaces a statement in `text` and `name` of the caller, who is told if it is not there exactly once.
macro(limit_statement statement replacement)
  string(FIND "${text}" "${statement}" first)
  string(FIND "${text}" "${statement}" last REVERSE)
  if(first EQUAL -1 OR NOT first EQUAL last)
    message(FATAL_ERROR "${name} does not have this statement exactly once: ${statement}")
  endif()
  string(REPLACE "${statement}" "${replacement}" text "${text}")
endmacro()
