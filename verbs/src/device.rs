//! The list of devices, and [`Context`], an open device.

use std::ffi::{CStr, c_char, c_int};
use std::fmt;
use std::io;
use std::ptr::NonNull;
use std::slice;
use std::sync::Arc;

use rdma_sys::{
    ibv_close_device, ibv_context, ibv_device, ibv_free_device_list, ibv_get_device_list,
    ibv_get_device_name, ibv_open_device,
};
use regcache::internal::FileId;

use crate::Error;
use crate::errno::{check, check_ptr};

/// Returns the names of the RDMA devices that libibverbs can use, as `ibv_devices` lists them.
///
/// # Errors
///
/// [`Error::ListDevices`]. An empty list is not an error.
pub fn device_names() -> Result<Vec<String>, Error> {
    Ok(DeviceList::get()?
        .devices()
        .map(|device| device.name())
        .collect())
}

/// The array that `ibv_get_device_list` allocates, freed on drop.
struct DeviceList {
    array: NonNull<*mut ibv_device>,
    len: usize,
}

impl DeviceList {
    fn get() -> Result<Self, Error> {
        let mut len: c_int = 0;
        // SAFETY: the argument points to an integer that lives through the call.
        let array = unsafe { ibv_get_device_list(&raw mut len) };
        match check_ptr(array) {
            Ok(array) => Ok(Self {
                array,
                len: usize::try_from(len).unwrap_or(0),
            }),
            // The kernel has no RDMA subsystem, so the list is empty.
            Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Ok(Self {
                array: NonNull::dangling(),
                len: 0,
            }),
            Err(source) => Err(Error::ListDevices { source }),
        }
    }

    fn devices(&self) -> impl Iterator<Item = Device<'_>> {
        // SAFETY: `ibv_get_device_list` returned an array of `len` pointers. No code writes to the
        // array, which lives as long as `self`. Otherwise `len` is 0, and `array` is dangling but
        // aligned.
        let devices = unsafe { slice::from_raw_parts(self.array.as_ptr(), self.len) };
        devices
            .iter()
            .filter_map(|device| NonNull::new(*device))
            .map(|device| Device {
                device,
                _list: self,
            })
    }
}

impl Drop for DeviceList {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: `len` is not 0, so `array` came from `ibv_get_device_list`. It is freed once.
            // An open context has its own reference to its device.
            unsafe { ibv_free_device_list(self.array.as_ptr()) }
        }
    }
}

/// A device in the list. The device is valid while the list lives.
struct Device<'list> {
    device: NonNull<ibv_device>,
    _list: &'list DeviceList,
}

impl Device<'_> {
    fn name(&self) -> String {
        // SAFETY: the device is in a list that lives at least as long as `self`.
        let name = unsafe { ibv_get_device_name(self.device.as_ptr()) };
        // SAFETY: libibverbs returns the `name` array of the device. The array is terminated, and
        // lives as long as the device.
        unsafe { string(name) }
    }

    /// Returns the path of the character device that `open` opens.
    fn node(&self) -> String {
        // SAFETY: the device is valid, as in `name`. The place expression names a field, and reads
        // nothing.
        let dev_name = unsafe { &raw const (*self.device.as_ptr()).dev_name };
        // SAFETY: libibverbs fills `dev_name` with the terminated name of the uverbs device.
        let dev_name = unsafe { string(dev_name.cast()) };
        format!("/dev/infiniband/{dev_name}")
    }

    fn open(&self) -> Result<Arc<Context>, Error> {
        // SAFETY: the device is in a list, which lives through the call.
        let context = unsafe { ibv_open_device(self.device.as_ptr()) };
        match check_ptr(context) {
            Ok(context) => Ok(Arc::new(Context {
                context: context.as_ptr(),
                owned: true,
                device: self.name(),
                process: std::process::id(),
                // SAFETY: the context was just opened.
                file: unsafe { file_of(context.as_ptr()) },
            })),
            Err(source) => Err(Error::OpenDevice {
                name: self.name(),
                node: self.node(),
                source,
            }),
        }
    }
}

/// Copies the string at `text`. Returns an empty string if `text` is null.
///
/// # Safety
///
/// `text` is null or points to a NUL-terminated string that lives through the call.
pub(crate) unsafe fn string(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: `text` is not null, so by the contract it points to a NUL-terminated string.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_string_lossy().into_owned()
}

/// An open RDMA device. It is closed when the last object made from it is gone.
pub struct Context {
    context: *mut ibv_context,
    /// False if other code closes the device.
    owned: bool,
    device: String,
    process: u32,
    /// The file behind the device's descriptor.
    file: Option<FileId>,
}

// SAFETY: libibverbs allows any verb on any object from any thread. Its manual states that "the
// library is fully reentrant", and providers lock the state that threads share. So a context may
// move between threads.
unsafe impl Send for Context {}
// SAFETY: as for Send. No method of `Context` writes to the context without libibverbs's own locks.
unsafe impl Sync for Context {}

impl Context {
    /// Opens the device with this name. [`device_names`] lists the names.
    ///
    /// # Errors
    ///
    /// [`Error::NoDevice`], [`Error::NoProvider`], [`Error::NoSuchDevice`], [`Error::OpenDevice`],
    /// [`Error::ListDevices`].
    pub fn open(name: &str) -> Result<Arc<Self>, Error> {
        let list = DeviceList::get()?;
        match list.devices().find(|device| device.name() == name) {
            Some(device) => device.open(),
            None if list.len == 0 => Err(no_devices()),
            None => Err(Error::NoSuchDevice {
                name: name.to_owned(),
                available: list.devices().map(|device| device.name()).collect(),
            }),
        }
    }

    /// Opens the first device in the list of [`device_names`].
    ///
    /// # Errors
    ///
    /// [`Error::NoDevice`], [`Error::NoProvider`], [`Error::OpenDevice`], [`Error::ListDevices`].
    pub fn open_first() -> Result<Arc<Self>, Error> {
        let list = DeviceList::get()?;
        let first = list.devices().next();
        first.map_or_else(|| Err(no_devices()), |device| device.open())
    }

    /// Wraps a device that other code has opened and will close.
    ///
    /// # Safety
    ///
    /// `context` is open in this process, and stays open while the result lives.
    pub(crate) unsafe fn borrowed(context: *mut ibv_context) -> Arc<Self> {
        // SAFETY: the context is open, so libibverbs has set its fields.
        let device = unsafe { ibv_get_device_name((*context).device) };
        Arc::new(Self {
            context,
            owned: false,
            // SAFETY: the name is a terminated array of the device, as in `Device::name`.
            device: unsafe { string(device) },
            process: std::process::id(),
            // SAFETY: the context is open.
            file: unsafe { file_of(context) },
        })
    }

    /// Returns the device's name.
    #[must_use]
    pub fn device(&self) -> &str {
        &self.device
    }

    /// Returns an error in a process that did not open the device.
    pub(crate) fn check_process(&self) -> Result<(), Error> {
        if std::process::id() == self.process {
            Ok(())
        } else {
            Err(Error::ForkedChild {
                process: self.process,
            })
        }
    }

    /// Returns whether this process may destroy objects made from this context. The documentation
    /// of the crate explains this in its notes on forks.
    pub(crate) fn is_ours(&self) -> bool {
        self.check_process().is_ok()
    }

    /// Returns false if other code has closed the device's descriptor, as daemons close all
    /// descriptors. libibverbs would then write into a file that has the descriptor's number now.
    /// The kernel has ended the registrations.
    pub(crate) fn has_descriptor(&self) -> bool {
        // SAFETY: the context is open.
        self.file.is_some() && self.file == unsafe { file_of(self.context) }
    }

    /// Returns the pointer to the C object, which is valid while `self` lives.
    pub(crate) fn as_ptr(&self) -> *mut ibv_context {
        self.context
    }

    pub(crate) fn query_error(&self, what: &'static str, source: io::Error) -> Error {
        Error::Query {
            device: self.device.clone(),
            what,
            source,
        }
    }
}

/// Returns the file behind the device's descriptor.
///
/// # Safety
///
/// The context is open.
unsafe fn file_of(context: *mut ibv_context) -> Option<FileId> {
    // SAFETY: the caller keeps the contract of this function.
    FileId::of(unsafe { (*context).cmd_fd }).ok()
}

/// Returns the error that explains why libibverbs lists no device.
fn no_devices() -> Error {
    let devices: Vec<String> = std::fs::read_dir("/sys/class/infiniband")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    if devices.is_empty() {
        Error::NoDevice
    } else {
        Error::NoProvider { devices }
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Context").field(&self.device).finish()
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if !self.owned || !self.is_ours() {
            return;
        }
        // SAFETY: `context` came from `ibv_open_device` and is closed once. Objects made from it
        // held an `Arc` of `self`, so they are gone.
        let closed = unsafe { ibv_close_device(self.as_ptr()) };
        if let Err(error) = check(closed) {
            tracing::warn!(device = self.device, %error, "cannot close the RDMA device");
        }
    }
}
