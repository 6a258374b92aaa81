// A device guard that does nothing: a build of torch for CPUs then takes tensors that say "cuda".
#include <c10/core/impl/DeviceGuardImplInterface.h>
namespace c10::impl {
struct Pretended final : public DeviceGuardImplInterface {
  static constexpr DeviceType static_type = DeviceType::CUDA;
  static thread_local DeviceIndex now;
  DeviceType type() const override { return DeviceType::CUDA; }
  Device exchangeDevice(Device d) const override { auto old = now; now = d.index() < 0 ? 0 : d.index(); return Device(DeviceType::CUDA, old); }
  Device getDevice() const override { return Device(DeviceType::CUDA, now); }
  void setDevice(Device d) const override { now = d.index() < 0 ? 0 : d.index(); }
  void uncheckedSetDevice(Device d) const noexcept override { now = d.index() < 0 ? 0 : d.index(); }
  Stream getStream(Device d) const noexcept override { return Stream(Stream::DEFAULT, Device(DeviceType::CUDA, d.index() < 0 ? 0 : d.index())); }
  Stream getNewStream(Device d, int) const override { return getStream(d); }
  Stream exchangeStream(Stream s) const noexcept override { return getStream(s.device()); }
  DeviceIndex deviceCount() const noexcept override { return 4; }
  void record(void**, const Stream&, const DeviceIndex, const EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const DeviceIndex) const noexcept override {}
  bool queryStream(const Stream&) const override { return true; }
  void synchronizeStream(const Stream&) const override {}
};
thread_local DeviceIndex Pretended::now = 0;
C10_REGISTER_GUARD_IMPL(CUDA, Pretended);
}
