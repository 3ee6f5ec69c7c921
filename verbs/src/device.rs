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

use crate::Error;
use crate::errno::{check, check_ptr};

/// Returns the names of the RDMA devices that libibverbs can use, as `ibv_devices` lists them.
///
/// # Errors
///
/// [`Error::ListDevices`]. No devices is not an error here.
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
        // SAFETY: the argument points to an int that lives through the call.
        let array = unsafe { ibv_get_device_list(&raw mut len) };
        match check_ptr(array) {
            Ok(array) => Ok(Self {
                array,
                len: usize::try_from(len).unwrap_or(0),
            }),
            // The kernel has no RDMA at all.
            Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Ok(Self {
                array: NonNull::dangling(),
                len: 0,
            }),
            Err(source) => Err(Error::ListDevices { source }),
        }
    }

    fn devices(&self) -> impl Iterator<Item = Device<'_>> {
        // SAFETY: `ibv_get_device_list` returned an array of `len` pointers, which nobody writes to
        // and which lives as long as `self`; or `array` dangles, aligned, and `len` is 0.
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
            // SAFETY: `array` came from `ibv_get_device_list` (else `len` is 0) and is freed once.
            // An open context keeps its device by a reference of its own.
            unsafe { ibv_free_device_list(self.array.as_ptr()) }
        }
    }
}

/// A device in the list; valid as long as the list is.
struct Device<'list> {
    device: NonNull<ibv_device>,
    _list: &'list DeviceList,
}

impl Device<'_> {
    fn name(&self) -> String {
        // SAFETY: the device is in a list that lives at least as long as `self`.
        let name = unsafe { ibv_get_device_name(self.device.as_ptr()) };
        // SAFETY: libibverbs returns the device's `name` array, which it terminates, and which
        // lives as long as the device.
        unsafe { string(name) }
    }

    /// Returns the character device that `open` opens.
    fn node(&self) -> String {
        // SAFETY: as in `name`; the array is a field, and a place expression reads nothing.
        let dev_name = unsafe { &raw const (*self.device.as_ptr()).dev_name };
        // SAFETY: libibverbs fills `dev_name` with the terminated name of the uverbs device.
        let dev_name = unsafe { string(dev_name.cast()) };
        format!("/dev/infiniband/{dev_name}")
    }

    fn open(&self) -> Result<Arc<Context>, Error> {
        // SAFETY: the device is in a list that lives through the call.
        let context = unsafe { ibv_open_device(self.device.as_ptr()) };
        match check_ptr(context) {
            Ok(context) => Ok(Arc::new(Context {
                context: context.as_ptr(),
                owned: true,
                device: self.name(),
                process: std::process::id(),
            })),
            Err(source) => Err(Error::OpenDevice {
                name: self.name(),
                node: self.node(),
                source,
            }),
        }
    }
}

/// Copies the text at `text`. It is empty if `text` is null.
///
/// # Safety
///
/// `text` is null or points to a NUL-terminated string that lives through the call.
pub(crate) unsafe fn string(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: not null, so by the contract a NUL-terminated string.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_string_lossy().into_owned()
}

/// An open RDMA device. Closed when the last object made from it is gone.
pub struct Context {
    context: *mut ibv_context,
    /// False if other code closes it.
    owned: bool,
    device: String,
    process: u32,
}

// SAFETY: libibverbs allows any verb on any object from any thread (its manual: "the library
// is fully reentrant"; providers lock what they share), so a context may move between threads.
unsafe impl Send for Context {}
// SAFETY: as for Send; no method of `Context` writes to it without libibverbs's own locks.
unsafe impl Sync for Context {}

impl Context {
    /// Opens the device called `name`, as listed by [`device_names`].
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

    /// Opens the first device listed.
    ///
    /// # Errors
    ///
    /// [`Error::NoDevice`], [`Error::NoProvider`], [`Error::OpenDevice`], [`Error::ListDevices`].
    pub fn open_first() -> Result<Arc<Self>, Error> {
        let list = DeviceList::get()?;
        let first = list.devices().next();
        first.map_or_else(|| Err(no_devices()), |device| device.open())
    }

    /// Wraps a device that other code has opened, and will close.
    ///
    /// # Safety
    ///
    /// `context` is open in this process, and stays so while the result lives.
    pub(crate) unsafe fn borrowed(context: *mut ibv_context) -> Arc<Self> {
        // SAFETY: libibverbs has filled an open context in.
        let device = unsafe { ibv_get_device_name((*context).device) };
        Arc::new(Self {
            context,
            owned: false,
            // SAFETY: as in `Device::name`.
            device: unsafe { string(device) },
            process: std::process::id(),
        })
    }

    /// Returns the device's name.
    #[must_use]
    pub fn device(&self) -> &str {
        &self.device
    }

    /// Fails in a process that did not open the device.
    pub(crate) fn check_process(&self) -> Result<(), Error> {
        if std::process::id() == self.process {
            Ok(())
        } else {
            Err(Error::ForkedChild {
                process: self.process,
            })
        }
    }

    /// Returns whether this process may destroy objects made from this context: see the crate's
    /// notes on forks.
    pub(crate) fn is_ours(&self) -> bool {
        self.check_process().is_ok()
    }

    /// Returns the pointer, which is valid as long as `self`.
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

/// Finds out why libibverbs lists no device.
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
        // SAFETY: `context` came from `ibv_open_device` and is closed once; whatever was made from
        // it held an `Arc` of `self` and is gone.
        let closed = unsafe { ibv_close_device(self.as_ptr()) };
        if let Err(error) = check(closed) {
            tracing::warn!(device = self.device, %error, "cannot close the RDMA device");
        }
    }
}
