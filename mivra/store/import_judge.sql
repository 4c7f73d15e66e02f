-- Refuse what occurs twice in the file, and count what is refused.
analyze staged;
update staged s set reason = format('external_id is already in line %s', d.first)
from (select line, min(line) over (partition by external_id) as first from staged where reason is null) d
where s.line = d.line and d.first < d.line;
select count(*) as rejected from staged where reason is not null;
