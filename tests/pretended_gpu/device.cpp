// Device "cuda" in the memory of this machine; device.py builds and loads it, and says what for.
//
// One fallback on the dispatch key of CUDA runs the CPU's kernel on aliases of the same memory. It
// refuses operands on two devices as CUDA does; what a kernel returns is copied into memory that is
// accounted for as the caching allocator does it, with a limit and with failures on demand.
#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/native/DispatchStub.h>
#include <ATen/native/transformers/attention.h>
#include <ATen/ops/_local_scalar_dense_native.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>
#include <unordered_map>

namespace {
using at::Tensor;
using c10::Device, c10::DeviceIndex, c10::DeviceType, c10::IValue, c10::Stream;
using Size = at::IntArrayRef;

const Device GPU(DeviceType::CUDA, 0);
const c10::DispatchKeySet KEYS(c10::DispatchKey::CUDA);

// ---- memory -------------------------------------------------------------------------------------
std::mutex books;
int64_t allocated = 0, peak = 0, limit = 0, fail_after = -1;
std::unordered_map<void*, int64_t> sizes;

struct Memory final : c10::Allocator {
  static void release(void* pointer) {
    if (!pointer) return;
    std::lock_guard<std::mutex> guard(books);
    allocated -= sizes[pointer];
    sizes.erase(pointer);
    std::free(pointer);
  }

  c10::DataPtr allocate(size_t bytes) override {
    void* pointer = nullptr;
    if (bytes) {
      int64_t rounded = (bytes + 511) / 512 * 512;
      std::lock_guard<std::mutex> guard(books);
      bool chosen = fail_after >= 0 && fail_after-- == 0;
      if (chosen || allocated + rounded > limit)
        TORCH_CHECK_WITH(OutOfMemoryError, false, "CUDA out of memory. Tried to allocate ", bytes,
            " bytes. GPU 0 has a total capacity of ", limit, " bytes, of which ",
            limit - allocated, " are free.");
      TORCH_CHECK(!posix_memalign(&pointer, 512, rounded), "no memory on this machine");
      sizes[pointer] = rounded;
      allocated += rounded;
      peak = std::max(peak, allocated);
    }
    return {pointer, pointer, &release, GPU};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t n) const override { std::memcpy(to, from, n); }
};
Memory memory;

// ---- what is asked of it ------------------------------------------------------------------------
int64_t launches = 0, waits = 0, uploads = 0;

bool answers_the_host(const std::string& name) {
  return name == "aten::nonzero" || name == "aten::equal" || name == "aten::_unique2" ||
      name == "aten::masked_select";
}

// ---- the device itself --------------------------------------------------------------------------
struct Guard final : c10::impl::NoOpDeviceGuardImpl<DeviceType::CUDA> {
  static Stream only() { return Stream(Stream::DEFAULT, GPU); }
  DeviceIndex deviceCount() const noexcept override { return 1; }
  Device getDevice() const override { return GPU; }
  Device exchangeDevice(Device) const override { return GPU; }
  Stream getStream(Device) const noexcept override { return only(); }
  Stream getNewStream(Device, int) const override { return only(); }
  Stream exchangeStream(Stream) const noexcept override { return only(); }
  void record(void**, const Stream&, const DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
};

bool on_gpu(const Tensor& t) { return t.defined() && t.device().is_cuda(); }

// the same memory, seen as a tensor of the CPU
Tensor as_cpu(const Tensor& t) {
  if (!on_gpu(t)) return t;
  auto storage = t.storage();
  auto options = at::TensorOptions().dtype(t.dtype()).device(at::kCPU);
  if (!storage.nbytes() || !t.numel()) return at::empty_strided(t.sizes(), t.strides(), options);
  auto* start = static_cast<char*>(const_cast<void*>(storage.data()));
  start += t.storage_offset() * t.element_size();
  return at::from_blob(start, t.sizes(), t.strides(), [storage](void*) {}, options);
}

Tensor to_gpu(const Tensor& cpu) {
  if (!cpu.defined()) return cpu;
  Tensor gpu = at::detail::empty_strided_generic(
      cpu.sizes(), cpu.strides(), &memory, KEYS, cpu.scalar_type());
  as_cpu(gpu).copy_(cpu);
  return gpu;
}

// ---- operators that make, view and move memory --------------------------------------------------
Tensor empty_memory_format(Size size, std::optional<at::ScalarType> dtype,
    std::optional<at::Layout>, std::optional<Device>, std::optional<bool>,
    std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, &memory, KEYS, c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(Size size, Size stride, std::optional<at::ScalarType> dtype,
    std::optional<at::Layout>, std::optional<Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(
      size, stride, &memory, KEYS, c10::dtype_or_default(dtype));
}

const Tensor& resize_(const Tensor& self, Size size, std::optional<at::MemoryFormat>) {
  int64_t count = c10::multiply_integers(size) + self.storage_offset();
  size_t wanted = count * self.element_size(), there = self.storage().nbytes();
  if (wanted > there) {
    auto data = memory.allocate(wanted);
    if (there) std::memcpy(data.get(), self.storage().data(), there);
    auto* storage = self.storage().unsafeGetStorageImpl();
    storage->set_data_ptr_noswap(std::move(data));
    storage->set_nbytes(wanted);
  }
  self.unsafeGetTensorImpl()->set_sizes_contiguous(size);
  return self;
}

at::Scalar local_scalar_dense(const Tensor& self) {
  waits++;
  return at::native::_local_scalar_dense_cpu(as_cpu(self));
}

Tensor& copy_(Tensor& self, const Tensor& source, bool) {
  (!on_gpu(self) ? waits : !on_gpu(source) ? uploads : launches)++;
  as_cpu(self).copy_(as_cpu(source));
  return self;
}

Tensor& set_storage(Tensor& self, at::Storage source, int64_t offset, Size size, Size stride) {
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(source));
  impl->set_storage_offset(offset);
  impl->set_sizes_and_strides(size, stride.size() ? stride : Size(c10::contiguous_strides(size)));
  return self;
}

Tensor& set_source(Tensor& self, at::Storage source) {
  int64_t count = source.nbytes() / self.element_size();
  return set_storage(self, std::move(source), 0, {count}, {1});
}

Tensor& set_tensor(Tensor& self, const Tensor& source) {
  return set_storage(
      self, source.storage(), source.storage_offset(), source.sizes(), source.strides());
}

Tensor& set_nothing(Tensor& self) {
  auto bytes = c10::Storage::use_byte_size_t();
  return set_source(self, c10::Storage(bytes, 0, memory.allocate(0), &memory, true));
}

// ---- all other operators ------------------------------------------------------------------------
struct Operands {
  bool gpu = false, host = false;

  Tensor seen(const Tensor& t) {
    if (on_gpu(t)) gpu = true;
    else if (t.defined() && t.device().is_cpu() && t.dim() > 0) host = true;
    return as_cpu(t);
  }

  IValue seen(const IValue& value) {
    if (value.isTensor()) return seen(value.toTensor());
    if (value.isDevice()) return Device(DeviceType::CPU);
    if (value.isTensorList()) {
      c10::List<Tensor> list;
      for (const Tensor& t : value.toTensorVector()) list.push_back(seen(t));
      return list;
    }
    if (value.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> list;
      for (const std::optional<Tensor>& t : value.toOptionalTensorVector())
        list.push_back(t ? std::optional<Tensor>(seen(*t)) : std::nullopt);
      return list;
    }
    return value;
  }
};

// CUDA's own kernels take indices on the CPU
bool takes_both(const std::string& name) {
  return name == "aten::index" || name == "aten::index_put" || name == "aten::index_put_" ||
      name == "aten::_index_put_impl_";
}

// a view of `base`, where the CPU's kernel made one of its alias
Tensor same_view(const Tensor& base, const Tensor& view) {
  TORCH_CHECK(view.dtype() == base.dtype(), "a view in another dtype");
  int64_t offset = 0;
  if (view.numel() && base.numel()) {
    auto* start = static_cast<const char*>(base.storage().data());
    offset = (static_cast<const char*>(view.data_ptr()) - start) / view.element_size();
  }
  return base.as_strided(view.sizes(), view.strides(), offset);
}

// what the caller passed in, once the kernel has written it; an out= may have been resized
IValue written(const IValue& original, const IValue& result) {
  if (original.isTensor() && on_gpu(original.toTensor()) && result.toTensor().defined()) {
    auto tensor = original.toTensor();
    if (tensor.sizes() != result.toTensor().sizes()) {
      tensor.resize_(result.toTensor().sizes());
      as_cpu(tensor).copy_(result.toTensor());
    }
  }
  return original;
}

// a result that is one of the arguments, or a view of one
std::optional<IValue> passed_in(const c10::FunctionSchema& schema, size_t number,
    const IValue& result, const std::vector<IValue>& originals) {
  const auto* alias = schema.returns()[number].alias_info();
  if (!alias) return std::nullopt;
  for (size_t i = 0; i < originals.size(); i++) {
    const auto* own = schema.arguments()[i].alias_info();
    if (!own || own->isWrite() != alias->isWrite() || own->beforeSets() != alias->beforeSets() ||
        originals[i].type()->kind() != result.type()->kind())
      continue;
    if (alias->isWrite()) return written(originals[i], result);
    if (result.isTensor()) return same_view(originals[i].toTensor(), result.toTensor());
  }
  return std::nullopt;
}

IValue returned(const IValue& value) {
  if (value.isTensor()) return to_gpu(value.toTensor());
  if (!value.isTensorList()) return value;
  c10::List<Tensor> list;
  for (const Tensor& t : value.toTensorVector()) list.push_back(to_gpu(t));
  return list;
}

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  size_t first = stack->size() - schema.arguments().size();
  std::vector<IValue> originals(stack->begin() + first, stack->end());
  Operands operands;
  for (size_t i = 0; i < originals.size(); i++) (*stack)[first + i] = operands.seen(originals[i]);
  TORCH_CHECK(!(operands.gpu && operands.host) || takes_both(schema.name()),
      "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and "
      "cpu! (", schema, ")");
  if (answers_the_host(schema.name())) waits++;
  const auto* alias = schema.returns().empty() ? nullptr : schema.returns()[0].alias_info();
  if (!alias || alias->isWrite()) launches++;  // the others are views
  op.callBoxed(stack);
  first = stack->size() - schema.returns().size();
  for (size_t i = 0; i < schema.returns().size(); i++) {
    auto& value = (*stack)[first + i];
    auto mine = passed_in(schema, i, value, originals);
    value = mine ? *mine : returned(value);
  }
}

int64_t plain_attention(const Tensor&, const Tensor&, const Tensor&, const std::optional<Tensor>&,
    double, bool, std::optional<double>, bool) {
  return 0;  // the kernel made of plain operators
}
}  // namespace

namespace c10::impl {
C10_REGISTER_GUARD_IMPL(CUDA, ::Guard)
}

namespace at {
struct CUDAHooks : CUDAHooksInterface {
  CUDAHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex current_device() const override { return 0; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  DeviceIndex exchangeDevice(DeviceIndex) const override { return 0; }
  DeviceIndex maybeExchangeDevice(DeviceIndex) const override { return 0; }
  void setCurrentDevice(DeviceIndex) const override {}
  int getNumGPUs() const override { return 1; }
  Allocator* getPinnedMemoryAllocator() const override { return c10::GetCPUAllocator(); }
  bool isPinnedPtr(const void*) const override { return false; }
  Allocator* getCUDADeviceAllocator() const override { return &memory; }
};
using at::CUDAHooksRegistry, at::RegistererCUDAHooksRegistry;
REGISTER_CUDA_HOOKS(CUDAHooks)
}  // namespace at

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", &empty_memory_format);
  m.impl("empty_strided", &empty_strided);
  m.impl("as_strided", &at::native::as_strided_tensorimpl);
  m.impl("view", &at::native::view);
  m.impl("unfold", &at::native::unfold);
  m.impl("_reshape_alias", &at::native::_reshape_alias);
  m.impl("resize_", &resize_);
  m.impl("_local_scalar_dense", &local_scalar_dense);
  m.impl("copy_", &copy_);
  m.impl("set_.source_Storage_storage_offset", &set_storage);
  m.impl("set_.source_Storage", &set_source);
  m.impl("set_.source_Tensor", &set_tensor);
  m.impl("set_", &set_nothing);
}

TORCH_LIBRARY_IMPL(_, CUDA, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>());
}

static bool ready = [] {
  c10::SetAllocator(DeviceType::CUDA, &memory, 255);
  at::native::_fused_sdp_choice_stub.set_cuda_dispatch_ptr(&plain_attention);
  return true;
}();

extern "C" {
int64_t gpu_allocated() { return allocated; }
int64_t gpu_peak() { return peak; }
void gpu_reset_peak() { peak = allocated; }
void gpu_set_limit(int64_t bytes) { limit = bytes; }
void gpu_fail_after(int64_t allocations) { fail_after = allocations; }
int64_t gpu_launches() { return launches; }
int64_t gpu_waits() { return waits; }
int64_t gpu_uploads() { return uploads; }
}
