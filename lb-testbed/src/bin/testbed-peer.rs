//! The process that holds a test's sockets in a namespace and a cgroup; started by the testbed.

fn main() -> anyhow::Result<()> {
    lb_testbed::peer::obey()
}
