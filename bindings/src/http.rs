//! HTTP requests by the application: the client of its system knows the proxies, VPNs and settings.

use crate::{downloader::DownloaderError, host::wait};
use mynah::hub::{self, Cancel};
use std::{
    collections::HashMap,
    io::{self, Read},
    sync::Arc,
};

/// A GET request.
#[derive(Clone, uniffi::Record)]
pub struct HttpRequest {
    /// The address.
    pub url: String,
    /// Its headers, by their names in lower case.
    pub headers: HashMap<String, String>,
}

/// A response whose body is still to be read.
#[derive(Clone, uniffi::Record)]
pub struct HttpResponse {
    /// The status code.
    pub status: u16,
    /// Its headers, by their names.
    pub headers: HashMap<String, String>,
    /// Its body; releasing it ends the response.
    pub body: Arc<dyn HttpBody>,
}

/// A client of the application. It neither follows redirects nor decompresses.
#[uniffi::export(foreign)]
#[async_trait::async_trait]
pub trait HttpClient: Send + Sync {
    /// Sends a request and returns when the headers of the response have arrived.
    ///
    /// # Errors
    /// Why there is no response.
    async fn get(&self, request: HttpRequest) -> Result<HttpResponse, DownloaderError>;
}

/// The body of a response.
#[uniffi::export(foreign)]
#[async_trait::async_trait]
pub trait HttpBody: Send + Sync {
    /// Waits for the next bytes; none at the end.
    ///
    /// # Errors
    /// Why the connection broke.
    async fn read(&self) -> Result<Vec<u8>, DownloaderError>;
}

/// Sends the requests of later downloads with a client of the application; without one, the library sends
/// them itself.
#[uniffi::export]
pub fn set_http_client(client: Option<Arc<dyn HttpClient>>) {
    hub::set_http_client(client.map(|client| Arc::new(Host(client)) as _));
}

struct Host(Arc<dyn HttpClient>);

impl hub::HttpClient for Host {
    fn get(&self, request: &hub::HttpRequest, cancel: &Cancel) -> io::Result<hub::HttpResponse> {
        let headers = request.headers.iter();
        let request = HttpRequest {
            url: request.url.into(),
            headers: headers.map(|(name, value)| (name.to_string(), value.clone())).collect(),
        };
        let response = wait(cancel, self.0.get(request), || ()).map_err(io::Error::other)?;
        let HttpResponse { status, headers, body } = response.map_err(io::Error::other)?;
        let body = Body { body, cancel: cancel.clone(), bytes: io::Cursor::default() };
        Ok(hub::HttpResponse {
            status,
            headers: headers.into_iter().collect(),
            body: Box::new(body),
        })
    }
}

/// A body as the core reads it.
struct Body {
    body: Arc<dyn HttpBody>,
    cancel: Cancel,
    bytes: io::Cursor<Vec<u8>>,
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.bytes.position() == self.bytes.get_ref().len() as u64 {
            let bytes = wait(&self.cancel, self.body.read(), || ()).map_err(io::Error::other)?;
            self.bytes = io::Cursor::new(bytes.map_err(io::Error::other)?);
        }
        self.bytes.read(buffer)
    }
}
