//! Puts many objects behind an API server in seconds, where clients of its API take minutes.
//!
//! The API server sees them as it sees what another API server of the same cluster has written. They
//! must be what it would have written itself: nobody validates them.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

/// Operations in a transaction; etcd's own limit is 128.
const OPERATIONS: usize = 100;
const ANSWERS_WITHIN: Duration = Duration::from_secs(30);

/// etcd at its client port, by its JSON gateway. Call this in a namespace that reaches it.
#[derive(Debug)]
pub struct Etcd {
    address: SocketAddr,
    operations: Vec<String>,
}

impl Etcd {
    /// The one at this address.
    pub fn at(address: IpAddr, port: u16) -> Self {
        Self { address: (address, port).into(), operations: Vec::new() }
    }

    /// Puts a value; it may be written later, [`Etcd::flush`] at the latest.
    pub fn put(&mut self, key: &str, value: &str) -> Result<()> {
        let (key, value) = (base64(key.as_bytes()), base64(value.as_bytes()));
        self.operations.push(format!(r#"{{"requestPut":{{"key":"{key}","value":"{value}"}}}}"#));
        if self.operations.len() < OPERATIONS { Ok(()) } else { self.flush() }
    }

    /// Writes what was put.
    pub fn flush(&mut self) -> Result<()> {
        if self.operations.is_empty() {
            return Ok(());
        }
        let body = format!(r#"{{"success":[{}]}}"#, self.operations.join(","));
        self.operations.clear();
        let answer = self.post("/v3/kv/txn", &body).context("write to etcd")?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "etcd refuses to write: {answer}");
        Ok(())
    }

    fn post(&self, path: &str, body: &str) -> Result<String> {
        let mut stream = TcpStream::connect(self.address)
            .with_context(|| format!("connect to {}", self.address))?;
        stream.set_read_timeout(Some(ANSWERS_WITHIN))?;
        let length = body.len();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: etcd\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
        );
        stream.write_all(head.as_bytes())?;
        stream.write_all(body.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }
}

/// RFC 4648.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |at: usize| u32::from(chunk.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for at in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * at) & 63) as usize];
            text.push(if at <= chunk.len() { char::from(letter) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_rfc_4648() {
        let texts =
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")];
        for (plain, encoded) in texts {
            assert_eq!(base64(plain.as_bytes()), encoded);
        }
        assert_eq!(base64(&[0xfb, 0xff, 0xfe]), "+//+");
    }
}
