package hostnet

import (
	"bufio"
	"errors"
	"net/netip"
	"os"
	"strings"

	"github.com/volant-edge/volant"
)

const sysctlDir = "/proc/sys/net/"

func readSysctl(name string) string {
	b, err := os.ReadFile(sysctlDir + name)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// setSysctl writes a value that is not there yet. A kernel without the protocol has no such file.
func setSysctl(name, value string) error {
	if readSysctl(name) == value {
		return nil
	}
	err := os.WriteFile(sysctlDir+name, []byte(value), 0) // exists, so the mode is not used
	if err == nil || errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return volant.Errorf(volant.ErrPrecondition, "set sysctl net/%s to %s: %v", name, value, err).
		WithRemedy("run as root on a writable /proc/sys, or set it by hand: sysctl -w net.%s=%s", strings.ReplaceAll(name, "/", "."), value)
}

func enableForwarding() error { return setSysctl("ipv4/ip_forward", "1") }

// reusePorts lets a local port whose connection has closed be used again at once where TCP's timestamps tell the
// two apart. Else the proxy's 28,000 ports towards one machine's port are spent at 470 connections a second,
// since each rests for a minute.
func reusePorts() error { return setSysctl("ipv4/tcp_tw_reuse", "1") }

// tapSysctls shuts a tap off from configuring the host: no router advertisements, no redirects, no
// address that the kernel makes up.
func tapSysctls(tap string) error {
	for _, s := range []struct{ name, value string }{
		{"ipv6/conf/" + tap + "/accept_ra", "0"},
		{"ipv6/conf/" + tap + "/autoconf", "0"},
		{"ipv6/conf/" + tap + "/addr_gen_mode", "1"},
		{"ipv6/conf/" + tap + "/accept_redirects", "0"},
		{"ipv4/conf/" + tap + "/accept_redirects", "0"},
		{"ipv4/conf/" + tap + "/send_redirects", "0"},
		{"ipv4/conf/" + tap + "/rp_filter", "1"},
	} {
		if err := setSysctl(s.name, s.value); err != nil {
			return err
		}
	}
	return nil
}

// hostResolvers returns the host's resolvers that a guest can reach too: not those on the host
// itself, such as systemd-resolved's stub, whose own sources are read instead.
func hostResolvers() []netip.Addr {
	for _, file := range []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"} {
		f, err := os.Open(file)
		if err != nil {
			continue
		}
		addrs := parseResolvers(bufio.NewScanner(f))
		f.Close() //nolint:errcheck // read only
		if len(addrs) > 0 {
			return addrs
		}
	}
	return nil
}

func parseResolvers(s *bufio.Scanner) []netip.Addr {
	var addrs []netip.Addr
	for s.Scan() && len(addrs) < 3 {
		f := strings.Fields(s.Text())
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		a, err := netip.ParseAddr(f[1])
		if err == nil && !a.IsLoopback() && !a.IsUnspecified() && a.Zone() == "" && !a.IsLinkLocalUnicast() {
			addrs = append(addrs, a)
		}
	}
	return addrs
}
