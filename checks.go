package volant

import (
	"net/url"
	"strings"
)

// The types of checks.
const (
	CheckTCP  = "tcp"  // the port accepts a connection
	CheckHTTP = "http" // a request is answered with a status of 2xx
)

// The kinds of a MachineCheck.
const (
	CheckInformational = "informational" // shown, and waited for by deploys
	CheckReadiness     = "readiness"     // a failing one takes the machine out of routing
)

// Check says what is wrong with a check, or nil. what names it in errors.
func (c *ServiceCheck) Check(what string) error {
	if c.Type != CheckTCP && c.Type != CheckHTTP {
		return Invalidf("%s has type %q: use tcp or http", what, c.Type)
	}
	if c.Type == CheckTCP {
		if c.Method != "" || c.Path != "" || c.Protocol != "" || len(c.Headers) > 0 || c.TLSServerName != "" {
			return Invalidf("%s is of type tcp, and has a method, path, protocol or headers: those are of http checks", what)
		}
		return nil
	}
	if c.Method != "" && !isToken(c.Method) {
		return Invalidf("%s: method %q is none", what, c.Method)
	}
	if _, err := url.ParseRequestURI(c.path()); err != nil || len(c.Path) > 2048 || strings.ContainsAny(c.Path, " \r\n") {
		return Invalidf("%s: path %q: use one that begins with \"/\", without blanks, of at most 2048 bytes", what, c.Path)
	}
	if c.Protocol != "" && c.Protocol != "http" && c.Protocol != "https" {
		return Invalidf("%s: protocol %q: use http or https", what, c.Protocol)
	}
	if len(c.Headers) > maxHeaders {
		return Invalidf("%s has %d headers: use at most %d", what, len(c.Headers), maxHeaders)
	}
	for _, h := range c.Headers {
		if _, err := HeaderChange(h.Name, h.Values); err != nil {
			return Invalidf("%s: %v", what, err)
		}
	}
	return nil
}

func (c *ServiceCheck) path() string {
	if c.Path == "" {
		return "/"
	}
	return c.Path
}

// URL is what an http check asks for at an address.
func (c *ServiceCheck) URL(hostPort string) string {
	scheme := "http"
	if c.Protocol == "https" {
		scheme = "https"
	}
	return scheme + "://" + hostPort + c.path()
}
