//! nginx in Weir's place, configured as its users would: the attack's own judgement is checked
//! on it, and its figures are told beside Weir's (`LAB_ATTACK_PEER=nginx`).

use super::rig::{HOST, OTHER, SECURE};
use anyhow::{Context, Result};
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

/// The command that runs nginx in the foreground with the attack's routes.
///
/// # Errors
/// When its configuration cannot be written.
pub(super) fn nginx(dir: &Path, origin: SocketAddr, other: SocketAddr, open: bool) -> Result<Command> {
    let dir = dir.join("nginx");
    fs::create_dir_all(&dir)?;
    let mut servers = String::new();
    for (host, up, tls) in [(HOST, "origin", false), (SECURE, "origin", true), (OTHER, "other", true)] {
        let key = rcgen::KeyPair::generate()?;
        let certificate = rcgen::CertificateParams::new(vec![host.to_owned()])?.self_signed(&key)?;
        fs::write(dir.join(format!("{host}.crt")), certificate.pem())?;
        fs::write(dir.join(format!("{host}.key")), key.serialize_pem())?;
        let at = dir.display();
        let listen = if tls {
            format!(
                "listen 443 ssl http2; ssl_certificate {at}/{host}.crt; ssl_certificate_key {at}/{host}.key;"
            )
        } else {
            "listen 80;".to_owned()
        };
        servers.push_str(&format!(
            "server {{ {listen} server_name {host};
               location / {{ proxy_pass http://{up}; }} location /private {{ proxy_pass http://other; }}
             }}\n"
        ));
    }
    // A host that nobody names: refused, or the origin's.
    let default = if open {
        format!(
            "listen 80 default_server; listen 443 ssl http2 default_server; ssl_certificate {0}/{SECURE}.crt;
             ssl_certificate_key {0}/{SECURE}.key; location / {{ proxy_pass http://origin; }}",
            dir.display()
        )
    } else {
        "listen 80 default_server; return 400;".to_owned()
    };
    let config = format!(
        "daemon off; master_process on; worker_processes 1; pid {0}/pid; error_log stderr;
         events {{ worker_connections 4096; }}
         http {{
           access_log off; client_body_temp_path {0}; proxy_temp_path {0}; fastcgi_temp_path {0};
           uwsgi_temp_path {0}; scgi_temp_path {0};
           map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
           proxy_http_version 1.1; proxy_set_header Host $host;
           proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade;
           proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Forwarded-Proto $scheme;
           proxy_set_header X-Real-IP $remote_addr; proxy_set_header Proxy '';
           proxy_request_buffering off; proxy_buffering off;
           upstream origin {{ server {origin}; keepalive 320; }}
           upstream other {{ server {other}; keepalive 320; }}
           server {{ {default} }}
           {servers}
         }}",
        dir.display()
    );
    let file = dir.join("nginx.conf");
    fs::write(&file, config).context("nginx.conf")?;
    let mut command = Command::new("nginx");
    command.arg("-c").arg(file).arg("-p").arg(&dir).args(["-e", "stderr"]);
    Ok(command)
}
