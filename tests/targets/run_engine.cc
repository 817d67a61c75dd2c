// Calls a compiled library on tensors from a file and writes the results to another; built for the target under test.
//
//   run_engine code.so kernel_name in out     calls a generated kernel, whose last tensor is its result
//   run_engine code.so main in out            runs a whole network through TVM's virtual machine
//
// A file holds, for each tensor: kind of element (0 float32, 1 int32, 2 uint16, 3 int64), rank, sizes (all int64), data.
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

namespace ffi = tvm::ffi;

namespace {

const DLDataType kTypes[] = {{kDLFloat, 32, 1}, {kDLInt, 32, 1}, {kDLUInt, 16, 1}, {kDLInt, 64, 1}};

struct HostAlloc {
  void AllocData(DLTensor* t) { t->data = std::aligned_alloc(64, (ffi::GetDataSize(*t) + 127) / 64 * 64); }
  void FreeData(DLTensor* t) { std::free(t->data); }
};

std::vector<ffi::Tensor> Read(const char* path) {
  std::ifstream file(path, std::ios::binary);
  std::vector<ffi::Tensor> tensors;
  int64_t head[2];
  while (file.read(reinterpret_cast<char*>(head), sizeof(head))) {
    std::vector<int64_t> shape(head[1]);
    file.read(reinterpret_cast<char*>(shape.data()), 8 * head[1]);
    ffi::Tensor t = ffi::Tensor::FromNDAlloc(HostAlloc(), ffi::Shape(shape), kTypes[head[0]], DLDevice{kDLCPU, 0});
    file.read(static_cast<char*>(t.data_ptr()), ffi::GetDataSize(*t.GetDLTensorPtr()));
    tensors.push_back(t);
  }
  return tensors;
}

void Write(const char* path, const std::vector<ffi::Tensor>& tensors) {
  std::ofstream file(path, std::ios::binary);
  for (const ffi::Tensor& t : tensors) {
    int64_t kind = 0;
    while (std::memcmp(&kTypes[kind], &t.GetDLTensorPtr()->dtype, sizeof(DLDataType)) != 0) ++kind;
    int64_t head[2] = {kind, t.ndim()};
    file.write(reinterpret_cast<char*>(head), sizeof(head));
    file.write(reinterpret_cast<const char*>(t.GetDLTensorPtr()->shape), 8 * t.ndim());
    file.write(static_cast<const char*>(t.data_ptr()), ffi::GetDataSize(*t.GetDLTensorPtr()));
  }
}

ffi::Any Call(const ffi::Function& function, const std::vector<ffi::Tensor>& tensors) {
  std::vector<ffi::AnyView> arguments(tensors.begin(), tensors.end());
  ffi::Any result;
  function.CallPacked(arguments.data(), static_cast<int>(arguments.size()), &result);
  return result;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) {
    std::cerr << "usage: run_engine LIBRARY FUNCTION IN OUT\n";
    return 2;
  }
  try {
    ffi::Module library = ffi::Module::LoadFromFile(argv[1]);
    std::vector<ffi::Tensor> tensors = Read(argv[3]);
    if (std::string(argv[2]) != "main") {
      Call(library->GetFunction(argv[2]).value(), tensors);
      Write(argv[4], {tensors.back()});
      return 0;
    }
    ffi::Module machine = library->GetFunction("vm_load_executable").value()().cast<ffi::Module>();
    const int kPooled = 2;
    machine->GetFunction("vm_initialization").value()(static_cast<int>(kDLCPU), 0, kPooled);
    ffi::Any result = Call(machine->GetFunction("main").value(), tensors);
    if (auto one = result.as<ffi::Tensor>()) {
      Write(argv[4], {*one});
    } else {
      auto all = result.cast<ffi::Array<ffi::Tensor>>();
      Write(argv[4], {all.begin(), all.end()});
    }
    return 0;
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}
