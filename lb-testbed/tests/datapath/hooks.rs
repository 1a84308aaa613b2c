//! Programs at hooks of cgroups and interfaces: put there, replaced in place, and taken off.

use super::*;

/// Id of the link and of its program, of every pinned link.
fn links(folder: &Path) -> Result<BTreeMap<String, (u32, u32)>> {
    let mut links = BTreeMap::new();
    for entry in fs::read_dir(folder.join("links"))? {
        let path = entry?.path();
        let info = sys::link_info(sys::object_get(&path)?.as_fd())?;
        let name = path.file_name().and_then(|name| name.to_str()).context("a name")?;
        links.insert(name.to_owned(), (info.id, info.program));
    }
    Ok(links)
}

#[test]
fn socket_programs_are_replaced_in_place() -> Result<()> {
    if !require::root_or_skip("socket_programs_are_replaced_in_place") {
        return Ok(());
    }
    let rig = Rig::new()?;
    let inner = rig.cgroup.child("pod")?;
    let mut real = rig.open()?;
    real.attach_sockets()?;
    ensure!(real.lacking().is_empty(), "{:?}", real.lacking());
    drop(real);
    let before = links(&rig.folder())?;
    assert_eq!(before.len(), SOCKET_HOOKS.len());
    let mut real = rig.open()?;
    real.attach_sockets()?;
    let after = links(&rig.folder())?;
    for (name, (link, program)) in &before {
        assert_eq!(after[name].0, *link, "{name}: the link stays");
        assert_ne!(after[name].1, *program, "{name}: its program is new");
    }
    for hook in status::socket_hooks(&rig.config().bpffs, inner.path())? {
        ensure!(hook.ours.is_some(), "{hook:?}");
    }
    // Another cgroup: the old links belong to nobody any more.
    drop(real);
    let other = Cgroup::new()?;
    let config = Config { cgroup: other.path().into(), ..rig.config() };
    BpfDatapath::open(&config)?.attach_sockets()?;
    for hook in status::socket_hooks(&config.bpffs, other.path())? {
        ensure!(hook.ours.is_some(), "{hook:?}");
    }
    for hook in status::socket_hooks(&config.bpffs, rig.cgroup.path())? {
        ensure!(hook.ours.is_none(), "{hook:?}");
    }
    Ok(())
}

fn interface(netns: &Netns, name: &str, ethernet: bool) -> Result<Interface> {
    let index = netns.ifindex(name)?;
    Ok(Interface {
        index,
        name: name.into(),
        role: Role::PodPort,
        ethernet,
        device: Device::default(),
    })
}

#[test]
fn interface_programs_are_first_on_ingress_and_last_on_egress() -> Result<()> {
    if !require::root_or_skip("interface_programs_are_first_on_ingress_and_last_on_egress") {
        return Ok(());
    }
    let rig = Rig::new()?;
    rig.netns.ip("link add v0 type veth peer name v1\ntuntap add t0 mode tun")?;
    let veth = interface(&rig.netns, "v0", true)?;
    let tun = interface(&rig.netns, "t0", false)?;
    let bpffs = rig.config().bpffs;
    rig.netns.run(|| -> Result<()> {
        let foreign = lb_testbed::testrun::load_empty(lb_testbed::testrun::Kind::SchedCls, -1, 0)?;
        let mut kept = Vec::new();
        for direction in Direction::ALL {
            let target = sys::Target::Interface(veth.index);
            kept.push(sys::link_create(foreign.as_fd(), target, direction.attach_type(), 0)?);
        }
        let mut real = rig.open()?;
        real.attach(&veth)?;
        real.attach(&tun)?;
        let before = links(&rig.folder())?;
        drop(real);
        let mut real = rig.open()?;
        assert_eq!(real.attached().len(), 2, "found again by their pins");
        real.attach(&veth)?;
        real.attach(&tun)?;
        let after = links(&rig.folder())?;
        ensure!(
            before.iter().all(|(name, link)| after[name].0 == link.0 && after[name].1 != link.1)
        );
        for hook in status::interface_hooks(&bpffs, &veth) {
            assert_eq!(hook.programs.len(), 2);
            let place = usize::from(hook.name != "tc_ingress");
            assert_eq!(hook.ours, Some(place), "{hook:?}");
        }
        for hook in status::interface_hooks(&bpffs, &tun) {
            assert_eq!(hook.ours, Some(0), "{hook:?}");
            assert_eq!(hook.programs[0].name, hook.name);
        }
        real.detach(veth.index)?;
        for hook in status::interface_hooks(&bpffs, &veth) {
            assert_eq!((hook.programs.len(), hook.ours), (1, None));
        }
        Ok(())
    })??;
    // An index whose interface is gone is forgotten without it.
    rig.netns.ip("link del t0")?;
    let mut real = rig.open()?;
    real.detach(tun.index)?;
    ensure!(links(&rig.folder())?.is_empty());
    Ok(())
}

/// V-12, V-13: an uplink is guarded, and what a pod port has is taken off when it becomes one.
#[test]
fn an_interface_that_changes_its_role_gets_other_programs() -> Result<()> {
    if !require::root_or_skip("an_interface_that_changes_its_role_gets_other_programs") {
        return Ok(());
    }
    let rig = Rig::new()?;
    rig.netns.ip("link add v0 type veth peer name v1\ntuntap add t0 mode tun")?;
    let bpffs = rig.config().bpffs;
    let veth = interface(&rig.netns, "v0", true)?;
    let tun = interface(&rig.netns, "t0", false)?;
    rig.netns.run(|| -> Result<()> {
        for tcx in [true, false] {
            let real = rig.open()?;
            let mut real = if tcx { real } else { real.without_tcx() };
            for (name, pod_port) in [("", &veth), ("_l3", &tun)] {
                for role in [Role::PodPort, Role::Uplink, Role::Overlay, Role::PodPort] {
                    let now = Interface { role, ..pod_port.clone() };
                    real.attach(&now)?;
                    let hooks = status::interface_hooks(&bpffs, &now);
                    ensure!(hooks.iter().all(|hook| hook.ours.is_some()), "{role}: {hooks:?}");
                    let wanted: &[&str] = match role {
                        Role::PodPort => &["tc_egress", "tc_ingress"],
                        _ => &["tc_uplink_egress", "tc_ingress"],
                    };
                    let names: Vec<&str> = hooks.iter().map(|hook| hook.name).collect();
                    let wanted: Vec<String> =
                        wanted.iter().map(|program| format!("{program}{name}")).collect();
                    assert_eq!(names, wanted, "{role}");
                    // Nothing of the earlier role is left.
                    let both = status::interface_hooks(&bpffs, pod_port);
                    let ours = both.iter().filter(|hook| hook.ours.is_some()).count();
                    assert_eq!(ours, names.len(), "{role}: {both:?}");
                }
                real.detach(pod_port.index)?;
            }
        }
        Ok(())
    })?
}

#[test]
fn what_fails_half_way_is_not_forgotten() -> Result<()> {
    if !require::root_or_skip("what_fails_half_way_is_not_forgotten") {
        return Ok(());
    }
    let rig = Rig::new()?;
    rig.netns.ip("link add v0 type veth peer name v1")?;
    let veth = interface(&rig.netns, "v0", true)?;
    rig.netns.run(|| -> Result<()> {
        let mut real = rig.open()?;
        // A folder where the pin of the second direction belongs: it can neither be made nor removed.
        let obstacle = hooks::interface_pin(&rig.folder(), Direction::Ingress, veth.index);
        fs::create_dir(&obstacle)?;
        ensure!(real.attach(&veth).is_err());
        assert_eq!(real.attached(), [veth.index], "its egress has a program");
        ensure!(real.detach(veth.index).is_err());
        ensure!(real.detach(veth.index).is_err(), "the second attempt does something as well");
        assert_eq!(real.attached(), [veth.index]);
        fs::remove_dir(&obstacle)?;
        real.detach(veth.index)?;
        ensure!(real.attached().is_empty());
        for hook in status::interface_hooks(&rig.config().bpffs, &veth) {
            ensure!(hook.programs.is_empty(), "{hook:?}");
        }
        Ok(())
    })?
}

#[test]
fn without_tcx_filters_are_replaced_in_place_and_removed() -> Result<()> {
    if !require::root_or_skip("without_tcx_filters_are_replaced_in_place_and_removed") {
        return Ok(());
    }
    let rig = Rig::new()?;
    rig.netns.ip("link add v0 type veth peer name v1")?;
    let veth = interface(&rig.netns, "v0", true)?;
    let filters = |direction| {
        let output = std::process::Command::new("tc")
            .args(["-n", rig.netns.name(), "filter", "show", "dev", "v0", direction])
            .output();
        output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    if filters("ingress").is_err() {
        require::skip("without_tcx_filters_are_replaced_in_place_and_removed", "needs `tc`");
        return Ok(());
    }
    for _ in 0..2 {
        rig.netns.run(|| -> Result<()> { Ok(rig.open()?.without_tcx().attach(&veth)?) })??;
        for (direction, name) in [("ingress", "tc_ingress"), ("egress", "tc_egress")] {
            let shown = filters(direction)?;
            assert_eq!(shown.matches("handle 0x4d52").count(), 1, "{shown}");
            ensure!(shown.contains(name), "{shown}");
        }
    }
    assert_eq!(hooks::pinned_interfaces(&rig.folder())?, [veth.index]);
    // A run that finds them by their pins takes them off.
    rig.netns.run(|| -> Result<()> { Ok(rig.open()?.detach(veth.index)?) })??;
    assert_eq!(filters("ingress")? + &filters("egress")?, "");
    rig.netns.run(|| -> Result<()> { Ok(rig.open()?.without_tcx().attach(&veth)?) })??;
    rig.netns
        .run(|| datapath::cleanup(&rig.config().bpffs, &[(veth.index, "v0".into())], false))??;
    assert_eq!(filters("ingress")? + &filters("egress")?, "");
    ensure!(!rig.config().bpffs.exists());
    Ok(())
}
